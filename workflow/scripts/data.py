"""Turn the official files of a data set into one file of tensors."""

from pathlib import Path

from job import job

from scap.data.datasets import read_source
from scap.tensors import save_tensors


def make_data(cfg: dict, output: str) -> None:
    save_tensors(Path(output), read_source(cfg["source"], Path(cfg.get("root", ""))))


if __name__ == "__main__":
    with job(snakemake):
        make_data(snakemake.params.cfg, snakemake.output[0])
