"""Train the network that will be pruned from weights that someone else trained."""

from pathlib import Path

from dataset import open_dataset
from device import pick_device, trained_on
from job import Report, job
from networks import open_unpruned
from table import write_table

from scap.pruning.files import save_network
from scap.training.loop import train
from scap.training.settings import TrainingSettings


def train_further(
    weights: str, data: str, cfg: dict, seed: int, version: str, model: str, history: str, device: str, report: Report
) -> None:
    dataset, settings = open_dataset(data, cfg["architecture"]), TrainingSettings(**cfg["training"])
    network, metadata = open_unpruned(weights, cfg["architecture"])
    resume = Path(f"{model}.resume")  # removed when the whole run has ended well
    rows = train(network, dataset, settings, seed=seed, device=device, resume=resume, version=version, report=report)
    write_table(history, rows)
    save_network(model, network, **metadata | {"extra": trained_on(device)})


if __name__ == "__main__":
    with job(snakemake) as report:
        train_further(
            snakemake.input.weights,
            snakemake.input.data,
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            snakemake.params.code,
            *snakemake.output,
            pick_device(snakemake),
            report,
        )
