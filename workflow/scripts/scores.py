"""Fuse the terms of a criterion into one score per channel. Imports no torch: it runs in a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from channels import read_fidelity
from job import job
from table import write_table

from scap.criterion.fusion import evaluate_term, fuse
from scap.criterion.settings import CriterionSettings
from scap.errors import DamagedFile
from scap.reading import AMOUNT, channel_values, open_tensors, read_table


def make_scores(baseline: str, terms: list[str], fidelities: list[str], cfg: dict, seed: int, output: str) -> None:
    settings = CriterionSettings(**cfg["criterion"])
    settings = replace(settings, seed=settings.seed + seed)
    measured = {Path(path).stem: read_term(path, cfg["layers"]) for path in terms}
    faithful = dict(zip(cfg["layers"], fidelities, strict=False))
    with open_tensors(baseline, "numpy") as file:

        def gather(need: str, layer: str) -> Any:
            if need == "weight":
                return file.take(f"{layer}.weight", "****").astype(float)
            if need == "autoencoder":
                return read_fidelity(faithful[layer], layer)
            return {"layer": layer, "seed": settings.seed}[need]

        def values(term: str) -> dict:
            if term in measured:
                return measured[term]
            return evaluate_term(term, cfg["layers"], gather)

        table = fuse({term: values(term) for term in settings.terms}, cfg["layers"], settings)
    write_table(output, table)


def read_term(path: str, layers: list[str]) -> dict:
    """The values of a term by layer, from the table that bears its name; DamagedFile where a layer is missing."""
    term = Path(path).stem
    values = channel_values(read_table(path, ["layer"], ["channel", term]), term, AMOUNT, source=path)
    if missing := [layer for layer in layers if layer not in values]:
        raise DamagedFile(path, f"layer {missing[0]} is missing")
    return values


if __name__ == "__main__":
    with job(snakemake):
        inputs = snakemake.input
        lists = [list(inputs.get(key, [])) for key in ("terms", "fidelities")]
        make_scores(inputs.baseline, *lists, snakemake.params.cfg, int(snakemake.wildcards.seed), snakemake.output[0])
