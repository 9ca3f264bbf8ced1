"""All scores of a criterion in one job: of groups of layers, which only the traced network tells, or of a pruned network."""

from dataclasses import replace

import torch
from dataset import calibration_images, open_dataset
from device import pick_device
from job import Report, job
from networks import open_pruned, open_unpruned
from table import write_table

from scap.criterion.score import score_network
from scap.criterion.settings import AutoencoderSettings, CriterionSettings


def make_scores(path: str, data: str, cfg: dict, seed: int, output: str, device: str, report: Report) -> None:
    """`cfg`: architecture, layers (None: all that can be pruned), coupled, pruned, and the criterion with all its settings."""
    criterion = dict(cfg["criterion"])
    autoencoder, calibration = criterion.pop("autoencoder"), criterion.pop("calibration")
    settings = CriterionSettings(**criterion)
    network, _ = (open_pruned if cfg["pruned"] else open_unpruned)(path, cfg["architecture"])
    images, _ = calibration_images(open_dataset(data, cfg["architecture"]), calibration["images"], seed, device)
    table = score_network(
        network.to(device),
        images,
        layers=cfg["layers"],
        coupled=cfg["coupled"],
        criterion=replace(settings, seed=settings.seed + seed),
        autoencoder=AutoencoderSettings(**autoencoder),
        outputs=calibration["outputs"],
        dtype=getattr(torch, calibration["dtype"]),
        report=report,
    )
    write_table(output, table)


if __name__ == "__main__":
    with job(snakemake) as report:
        inputs, seed = snakemake.input, int(snakemake.wildcards.seed)
        device = pick_device(snakemake)
        make_scores(inputs.network, inputs.data, snakemake.params.cfg, seed, snakemake.output[0], device, report)
