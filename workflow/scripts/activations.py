"""Record the activations of the analysed convolutions on the calibration images."""

from pathlib import Path

import torch
from dataset import calibration_images, open_dataset
from device import pick_device
from job import Report, job
from networks import open_unpruned

from scap.criterion.activations import record_activations


def record(baseline: str, data: str, cfg: dict, seed: int, output: str, device: str, report: Report) -> None:
    calibration = cfg["calibration"]
    images, _ = calibration_images(open_dataset(data, cfg["architecture"]), calibration["images"], seed, device)
    record_activations(
        open_unpruned(baseline, cfg["architecture"])[0].to(device),
        images,
        cfg["layers"],
        Path(output),
        outputs=calibration["outputs"],
        dtype=getattr(torch, calibration["dtype"]),
        report=report,
    )


if __name__ == "__main__":
    with job(snakemake) as report:
        record(
            snakemake.input.baseline,
            snakemake.input.data,
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            snakemake.output[0],
            pick_device(snakemake),
            report,
        )
