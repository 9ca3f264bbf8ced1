"""List the images of a folder."""

from pathlib import Path

from job import job

from scap.data.folder import read_folder
from scap.data.settings import FolderSettings
from scap.tensors import save_tensors


def make_list(cfg: dict, output: str) -> None:
    save_tensors(Path(output), read_folder(Path(cfg["root"]), FolderSettings(**cfg["settings"])))


if __name__ == "__main__":
    with job(snakemake):
        make_list(snakemake.params.cfg, snakemake.output[0])
