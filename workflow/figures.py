"""Every table and figure of a comparison, declared once: what draws it, what it is drawn from, its caption."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of a comparison, results/tables/{comparison}{suffix}.csv."""

    suffix: str
    caption: str


@dataclass(frozen=True)
class Figure:
    """A figure: the function that draws it, as `module:name`, and the tables that it reads (see workflow/lineage.py)."""

    function: str
    tables: str
    caption: str


TABLES = {
    "runs": Table(
        "",
        "One row a run: seed, criterion, widths, size, compensation and schedule; top-1 in percent before pruning, after it "
        "and after fine-tuning; FLOPs (1 MAC = 1 FLOP) and parameters.",
    ),
    "sensitivity": Table(
        ".sensitivity",
        "One row a criterion and seed, without any training: what is removed, the distance from the published size (−90.11 % "
        "FLOPs, −96.30 % parameters) in points, and how alike the rankings within a layer are.",
    ),
    "method": Table(".method", "One channel through the method, as pixels."),
}
FIGURES = {
    "tradeoff": Figure(
        "scap.figures.runs:tradeoff_figure",
        "runs",
        "Top-1 on the test images against FLOPs and parameters removed; mean and standard deviation over seeds where there are "
        "several.",
    ),
    "headline": Figure(
        "scap.figures.headline:headline_figure",
        "runs",
        "The same beside published rows of VGG16 on CIFAR-10 at their own sizes, by their own trainings; HRank as printed and "
        "recounted.",
    ),
    "finetuning": Figure(
        "scap.figures.runs:finetuning_figure",
        "histories",
        "Top-1 (on held-out images, else on training images) and loss after each epoch of fine-tuning.",
    ),
    "method": Figure(
        "scap.figures.method:method_figure",
        "method",
        "One channel through the method: input and output (the interaction field), its spectrum, and the autoencoder's "
        "reconstruction.",
    ),
    "scores": Figure(
        "scap.figures.channels:scores_figure",
        "scores",
        "Score of every channel, and fidelity where the criterion has it, layer by layer, with the threshold.",
    ),
    "channels": Figure("scap.figures.channels:channels_figure", "channels", "Channels of each layer before and after pruning."),
    "sensitivity": Figure(
        "scap.figures.sensitivity:sensitivity_figure",
        "sensitivity",
        "Interpretations of what the paper leaves open, at one threshold and without training: what is removed, and how alike "
        "the rankings are.",
    ),
}
