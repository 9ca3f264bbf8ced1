"""Download the official files of a data set, verified by MD5."""

from pathlib import Path

from job import job

from scap.data.datasets import download

if __name__ == "__main__":
    with job(snakemake):
        download(snakemake.params.cfg["source"], Path(snakemake.params.cfg["root"]))
