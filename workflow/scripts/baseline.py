"""Train the network that will be pruned."""

from pathlib import Path

from dataset import open_dataset
from device import pick_device
from job import Report, job
from table import write_table

from scap.networks import build_network
from scap.pruning import save_network
from scap.training import TrainingSettings, reset_network, train


def train_baseline(data: str, cfg: dict, seed: int, model: str, history: str, device: str, report: Report) -> None:
    dataset = open_dataset(data, cfg["architecture"])
    channels, *size = dataset.test.images.shape[1:]
    arguments = {"classes": dataset.classes, "in_channels": channels, "width": cfg["architecture"]["width"]}
    network = build_network(cfg["architecture"]["architecture"], **arguments)
    reset_network(network, seed)
    resume = Path(f"{model}.resume")  # removed when the whole run has ended well
    rows = train(network, dataset, TrainingSettings(**cfg["training"]), seed=seed, device=device, resume=resume, report=report)
    write_table(history, rows)
    name = cfg["architecture"]["architecture"]
    save_network(model, network, architecture=name, arguments=arguments, example_shape=(1, channels, *size))


if __name__ == "__main__":
    with job(snakemake) as report:
        train_baseline(
            snakemake.input.data,
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            *snakemake.output,
            pick_device(snakemake.threads),
            report,
        )
