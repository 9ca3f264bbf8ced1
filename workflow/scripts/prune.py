"""Choose the channels to keep, make the smaller network, and compensate its next layers."""

import torch
from channels import read_scores
from dataset import calibration_images, open_dataset
from job import Report, job
from networks import open_unpruned
from plans import make_plan
from table import write_table

from scap.pruning.compensation import prune_and_compensate
from scap.pruning.files import save_network


def prune(inputs: dict, cfg: dict, seed: int, model: str, channels: str, compensation: str, report: Report) -> None:
    own = read_scores(inputs["scores"])
    network, metadata = open_unpruned(inputs["baseline"], cfg["architecture"])
    example = torch.zeros(metadata["example_shape"])
    widths_of = next(map(read_scores, inputs["width_scores"]), None)
    plan = make_plan(network, example, own, widths_of, cfg["plan"])
    images, how, ridge = example, cfg["compensation"]["how"], cfg["compensation"]["ridge"]
    if how != "none":
        dataset = open_dataset(inputs["data"], cfg["architecture"])
        images, _ = calibration_images(dataset, cfg["compensation"]["images"], seed, "cpu")
    pruned, done = prune_and_compensate(network, plan, images, how=how, ridge=ridge, report=report)
    save_network(
        model,
        pruned,
        architecture=metadata["architecture"],
        arguments=metadata["arguments"],
        plan=plan,
        example_shape=metadata["example_shape"],
    )
    before = own.groupby("layer").size()
    write_table(channels, ({"layer": layer, "before": before[layer], "after": len(kept)} for layer, kept in plan.items()))
    write_table(compensation, done)


if __name__ == "__main__":
    with job(snakemake) as report:
        torch.set_num_threads(snakemake.threads)
        prune(
            dict(snakemake.input.items()),
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            *snakemake.output,
            report,
        )
