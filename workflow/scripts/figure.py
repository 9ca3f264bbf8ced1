"""Draw one figure from its tables."""

from job import job
from matplotlib.figure import Figure

from scap.figures.channels import channels_figure, fidelity_figure
from scap.figures.method import method_figure
from scap.figures.runs import finetuning_figure, tradeoff_figure
from scap.figures.style import save


def draw(figure: str, tables: list[str], cfg: dict) -> Figure:
    if figure == "finetuning":
        return finetuning_figure(dict(zip(cfg["labels"], tables, strict=True)))
    if figure == "fidelity":
        return fidelity_figure(tables[0], cfg["threshold"], cfg["title"])
    return {"tradeoff": tradeoff_figure, "method": method_figure, "channels": channels_figure}[figure](tables[0])


if __name__ == "__main__":
    with job(snakemake):
        save(draw(snakemake.wildcards.figure, list(snakemake.input.tables), snakemake.params.cfg), snakemake.output)
