"""Choose the channels to keep and make the smaller network."""

import torch
from channels import read_scores
from job import job
from networks import open_network
from plans import make_plan
from table import write_table

from scap.pruning.files import save_network
from scap.pruning.surgery import prune_network


def prune(baseline: str, scores: str, width_scores: list[str], cfg: dict, model: str, channels: str) -> None:
    network, metadata = open_network(baseline, pruned=False)
    example = torch.zeros(metadata["example_shape"])
    own = read_scores(scores)
    widths_of = read_scores(width_scores[0]) if width_scores else None
    plan = make_plan(network, example, own, widths_of, cfg["uniform"], cfg)
    pruned = prune_network(network, plan, example)
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


if __name__ == "__main__":
    with job(snakemake):
        prune(
            snakemake.input.baseline,
            snakemake.input.scores,
            list(snakemake.input.width_scores),
            snakemake.params.cfg,
            *snakemake.output,
        )
