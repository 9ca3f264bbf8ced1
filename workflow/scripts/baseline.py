"""Train the network that will be pruned."""

from pathlib import Path

from building import build
from dataset import open_dataset
from device import pick_device, trained_on
from job import Report, job
from table import write_table

from scap.pruning.files import save_network
from scap.training.loop import reset_network, train
from scap.training.settings import TrainingSettings


def train_baseline(
    data: str, cfg: dict, seed: int, version: str, model: str, history: str, device: str, report: Report
) -> None:
    dataset = open_dataset(data, cfg["architecture"])
    channels, *size = dataset.test.shape
    network, arguments = build(cfg["architecture"], dataset)
    reset_network(network, seed)
    resume = Path(f"{model}.resume")  # removed when the whole run has ended well
    settings = TrainingSettings(**cfg["training"])
    rows = train(network, dataset, settings, seed=seed, device=device, resume=resume, version=version, report=report)
    write_table(history, rows)
    name = cfg["architecture"]["architecture"]
    extra = trained_on(device)
    save_network(model, network, architecture=name, arguments=arguments, example_shape=(1, channels, *size), extra=extra)


if __name__ == "__main__":
    with job(snakemake) as report:
        train_baseline(
            snakemake.input.data,
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            snakemake.params.code,
            *snakemake.output,
            pick_device(snakemake),
            report,
        )
