"""Fuse fidelities and magnitudes into one score per channel. Imports no torch: it runs in a second."""

from dataclasses import replace

from channels import read_fidelity
from job import job
from table import write_table

from scap.criterion.fusion import CriterionSettings, channel_scores, filter_norms, score_table
from scap.reading import AMOUNT, PRECISE, channel_values, open_tensors, read_table


def make_scores(baseline: str, fidelities: list[str], activations: list[str], cfg: dict, seed: int, output: str) -> None:
    settings = CriterionSettings(**cfg["criterion"])
    settings = replace(settings, seed=settings.seed + seed)
    with open_tensors(baseline, "numpy") as file:
        weights = {layer: file.take(f"{layer}.weight", "****", PRECISE) for layer in cfg["layers"]}
    magnitudes = {layer: filter_norms(weight) for layer, weight in weights.items()}
    for path in activations:
        table = read_table(path, ["layer"], ["channel", settings.magnitude_of])
        magnitudes |= channel_values(table, settings.magnitude_of, AMOUNT, source=path)
    pairs = zip(cfg["layers"], fidelities, strict=bool(fidelities))
    faithful = {layer: read_fidelity(path, layer) for layer, path in pairs}
    columns = {layer: channel_scores(layer, faithful.get(layer), magnitudes[layer], settings) for layer in cfg["layers"]}
    write_table(output, score_table(columns))


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
