"""Draw one figure from its tables, by the function that workflow/figures.py names."""

from importlib import import_module

from job import job

from scap.figures.style import save


def draw(tables: list[str], cfg: dict, outputs: list[str]) -> None:
    module, _, name = cfg["function"].partition(":")
    function = getattr(import_module(module), name)
    source = dict(zip(cfg["labels"], tables, strict=True)) if "labels" in cfg else tables[0]
    save(function(source, **cfg.get("arguments", {})), outputs)


if __name__ == "__main__":
    with job(snakemake):
        draw(list(snakemake.input.tables), snakemake.params.cfg, list(snakemake.output))
