"""Fuse the terms of a criterion into one score per channel. Imports no torch: it runs in a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from job import job
from safetensors import safe_open

from scap.criterion.fusion import evaluate_term, fuse
from scap.criterion.settings import CriterionSettings


def make_scores(baseline: str, terms: list[str], fidelities: list[str], cfg: dict, seed: int, output: str) -> None:
    settings = CriterionSettings(**cfg["criterion"])
    settings = replace(settings, seed=settings.seed + seed)
    measured = {Path(path).stem: pd.read_csv(path).groupby("layer") for path in terms}
    faithful = dict(zip(cfg["layers"], fidelities, strict=False))
    with safe_open(baseline, framework="numpy") as file:

        def gather(need: str, layer: str) -> Any:
            if need == "weight":
                return file.get_tensor(f"{layer}.weight").astype(float)
            if need == "autoencoder":
                return pd.read_csv(faithful[layer])["fidelity"].to_numpy()
            return {"layer": layer, "seed": settings.seed}[need]

        def values(term: str) -> dict:
            if term in measured:
                return {layer: measured[term].get_group(layer)[term].to_numpy() for layer in cfg["layers"]}
            return evaluate_term(term, cfg["layers"], gather)

        table = fuse({term: values(term) for term in settings.terms}, cfg["layers"], settings)
    table.to_csv(output, index=False)


if __name__ == "__main__":
    with job(snakemake):
        inputs = snakemake.input
        lists = [list(inputs.get(key, [])) for key in ("terms", "fidelities")]
        make_scores(inputs.baseline, *lists, snakemake.params.cfg, int(snakemake.wildcards.seed), snakemake.output[0])
