"""Draw one figure from its tables."""

from job import job
from matplotlib.figure import Figure

from scap import figures


def draw(figure: str, tables: list[str], cfg: dict) -> Figure:
    if figure == "finetuning":
        return figures.finetuning_figure(dict(zip(cfg["labels"], tables, strict=True)))
    if figure == "fidelity":
        return figures.fidelity_figure(tables[0], cfg["threshold"], cfg["title"])
    return {"tradeoff": figures.tradeoff_figure, "method": figures.method_figure, "channels": figures.channels_figure}[figure](
        tables[0]
    )


if __name__ == "__main__":
    with job(snakemake):
        figures.save(draw(snakemake.wildcards.figure, list(snakemake.input.tables), snakemake.params.cfg), snakemake.output)
