"""Record the activations of the analysed convolutions on the calibration images, and how strong each output channel is."""

from collections.abc import Iterator
from pathlib import Path

import torch
from dataset import open_dataset
from device import pick_device
from job import Report, job
from networks import open_network
from table import write_table

from scap.criterion.activations import record_activations
from scap.criterion.spectra import open_activations
from scap.criterion.strengths import STRENGTHS, second_moments
from scap.data.datasets import normalise
from scap.errors import ScapError


def record(baseline: str, data: str, cfg: dict, seed: int, output: str, strengths: str, device: str, report: Report) -> None:
    dataset, calibration = open_dataset(data, cfg["architecture"]), cfg["calibration"]
    wanted, available = calibration["images"], len(dataset.train)
    if wanted > available:
        raise ScapError(f"calibrations: {wanted} images are wanted, but there are {available} training images; lower `images`")
    chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:wanted]
    images = normalise(dataset.train.images[chosen], dataset.mean, dataset.std, device)
    network, _ = open_network(baseline, pruned=False, architecture=cfg["architecture"])
    record_activations(
        network.to(device),
        images,
        cfg["layers"],
        Path(output),
        outputs=calibration["outputs"],
        dtype=getattr(torch, calibration["dtype"]),
        report=report,
    )
    write_table(strengths, rows(output, cfg["layers"]))


def rows(path: str, layers: list[str]) -> Iterator[dict]:
    for layer in layers:
        moments = second_moments(open_activations(path, layer)[1])
        measured = {name: measure(moments).tolist() for name, measure in STRENGTHS.items()}
        for channel in range(len(moments)):
            yield {"layer": layer, "channel": channel, **{name: values[channel] for name, values in measured.items()}}


if __name__ == "__main__":
    with job(snakemake) as report:
        record(
            snakemake.input.baseline,
            snakemake.input.data,
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            *snakemake.output,
            pick_device(snakemake),
            report,
        )
