"""Fuse fidelities and filter norms into one score per channel. Imports no torch: it runs in a second."""

from dataclasses import replace

import pandas as pd
from job import job
from safetensors import safe_open

from scap.scores import CriterionSettings, channel_scores, filter_norms, score_table


def make_scores(baseline: str, fidelities: list[str], cfg: dict, seed: int, output: str) -> None:
    settings = CriterionSettings(**cfg["criterion"])
    settings = replace(settings, seed=settings.seed + seed)
    columns = {}
    with safe_open(baseline, framework="numpy") as file:
        for index, layer in enumerate(cfg["layers"]):
            fidelity = pd.read_csv(fidelities[index])["fidelity"].to_numpy() if fidelities else None
            columns[layer] = channel_scores(layer, fidelity, filter_norms(file.get_tensor(f"{layer}.weight")), settings)
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
