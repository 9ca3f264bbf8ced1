"""Fuse fidelities and magnitudes into one score per channel. Imports no torch: it runs in a second."""

from dataclasses import replace

import pandas as pd
from job import job
from safetensors import safe_open

from scap.criterion.fusion import CriterionSettings, channel_scores, filter_norms, score_table


def make_scores(baseline: str, fidelities: list[str], activations: list[str], cfg: dict, seed: int, output: str) -> None:
    settings = CriterionSettings(**cfg["criterion"])
    settings = replace(settings, seed=settings.seed + seed)
    with safe_open(baseline, framework="numpy") as file:
        magnitudes = {layer: filter_norms(file.get_tensor(f"{layer}.weight")) for layer in cfg["layers"]}
    for path in activations:
        magnitudes |= {layer: rows[settings.magnitude_of].to_numpy() for layer, rows in pd.read_csv(path).groupby("layer")}
    pairs = zip(cfg["layers"], fidelities, strict=bool(fidelities))
    faithful = {layer: pd.read_csv(path)["fidelity"].to_numpy() for layer, path in pairs}
    columns = {layer: channel_scores(layer, faithful.get(layer), values, settings) for layer, values in magnitudes.items()}
    score_table(columns).to_csv(output, index=False)


if __name__ == "__main__":
    with job(snakemake):
        make_scores(
            snakemake.input.baseline,
            list(snakemake.input.fidelities),
            list(snakemake.input.activations),
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            snakemake.output[0],
        )
