"""Fuse fidelities and filter norms into one score per channel. Imports no torch: it runs in a second."""

from dataclasses import replace

import pandas as pd
from job import job
from safetensors import safe_open

from scap.scores import CriterionSettings, channel_scores, filter_norms, score_table


def make_scores(baseline: str, fidelities: list[str], cfg: dict, seed: int, output: str) -> None:
    settings = CriterionSettings(**cfg["criterion"])
    settings = replace(settings, seed=settings.seed + seed)
    with safe_open(baseline, framework="numpy") as file:
        magnitudes = {layer: filter_norms(file.get_tensor(f"{layer}.weight")) for layer in cfg["layers"]}
    measured = {layer: pd.read_csv(path) for layer, path in zip(cfg["layers"], fidelities, strict=bool(fidelities))}
    if settings.magnitude == "activation":
        magnitudes = {layer: table["activation"].to_numpy() for layer, table in measured.items()}
    faithful = {layer: table["fidelity"].to_numpy() for layer, table in measured.items()}
    columns = {layer: channel_scores(layer, faithful.get(layer), values, settings) for layer, values in magnitudes.items()}
    score_table(columns).to_csv(output, index=False)


if __name__ == "__main__":
    with job(snakemake):
        make_scores(
            snakemake.input.baseline,
            list(snakemake.input.fidelities),
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            snakemake.output[0],
        )
