"""Tables for the figures, and each figure over sizes from the smallest to the fullest."""

from itertools import product

import numpy as np
import pandas as pd

from scap.figures.channels import channels_figure, scores_figure
from scap.figures.headline import headline_figure
from scap.figures.method import method_figure
from scap.figures.runs import finetuning_figure, tradeoff_figure
from scap.figures.sensitivity import sensitivity_figure

VGG = {
    f"conv{block}_{i}": min(512, 32 * 2**block)
    for block, convs in enumerate((2, 2, 3, 3, 3), start=1)
    for i in range(1, convs + 1)
}
RESNET = {f"layer{s}.{b}.conv{c}": 8 * 2**s for s, b, c in product((1, 2, 3), (0, 1, 2), (1, 2))}
CRITERIA = [
    "scap",
    "scap-power",
    "scap-log-magnitude",
    "scap-complex",
    "l1",
    "random",
    "rms",
    "novelty",
    "conditional",
    "conditional-taps",
]
SCHEDULES = ["paper", "distilled"]


def write(path, table):
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def scores(path, widths, fidelity=True):
    random = np.random.default_rng(0)
    rows = [(layer, channel, *random.random(3)) for layer, width in widths.items() for channel in range(width)]
    table = pd.DataFrame(rows, columns=["layer", "channel", "fidelity", "l1", "score"])
    return write(path, table if fidelity else table.drop(columns="fidelity"))


def channels(path, widths):
    after = [max(1, width * (i + 1) // 40) for i, width in enumerate(widths.values())]
    return write(path, {"layer": list(widths), "before": list(widths.values()), "after": after})


def runs(path, criteria=("scap",), sizes=("threshold-0.4", "threshold-0.5", "threshold-0.6"), seeds=(0, 1, 2), **axes):
    axes = {"widths": ["own"], "compensation": ["none"], "schedule": ["paper"], "spread": [0.4]} | axes
    rows = [
        {"network": "vgg16", "seed": seed, "criterion": criterion, "widths": widths, "size": size}
        | {"compensation": compensation, "schedule": schedule}
        | {"top1_baseline": 93 + 0.1 * seed, "top1": 94 - 3 * float(size.split("-")[1]) + 0.2 * seed - 0.1 * i}
        | {
            "macs_removed": 0.6 + spread * float(size.split("-")[1]) - 0.01 * seed,
            "params_removed": 0.75 + spread * float(size.split("-")[1]) / 2,
        }
        for (i, criterion), size, seed, widths, compensation, schedule, spread in product(
            enumerate(criteria), sizes, seeds, *axes.values()
        )
    ]
    return write(path, rows)


def history(path, epochs, held_out=True):
    epoch = np.arange(1, epochs + 1)
    train = 95 - 20 / epoch
    holdout = train - 2 if held_out else np.full(epochs, np.nan)
    return write(path, {"epoch": epoch, "loss": 1 / epoch, "train_top1": train, "holdout_top1": holdout})


def method(path, height, width):
    random = np.random.default_rng(0)
    panels = ("input", "output", "spectrum", "reconstruction")
    rows = [(p, r, c, random.normal()) for p, r, c in product(panels, range(height), range(width))]
    return write(path, pd.DataFrame(rows, columns=["panel", "row", "column", "value"]))


def sensitivity(path, criteria=29, seeds=(0, 1, 2), sizes=("threshold-0.6",)):
    """Criteria whose size lies nearer to the published one the later they come; the last ranks nothing."""
    rows = [
        {
            **{"network": "vgg16", "criterion": f"criterion-{index}", "widths": "own", "size": size, "seed": seed},
            **{"distance_to_published": criteria - index},
            **{"macs_removed": 0.5 + 0.01 * index + 0.01 * seed, "params_removed": 0.6 + 0.01 * index},
            **{"rank_correlation_first": 1 - 0.02 * index - 0.01 * seed, "rank_correlation_l1": -0.1 * (index % 3)},
        }
        for index, size, seed in product(range(criteria), sizes, seeds)
    ]
    table = pd.DataFrame(rows)
    table.loc[table["criterion"] == f"criterion-{criteria - 1}", ["rank_correlation_first", "rank_correlation_l1"]] = np.nan
    return write(path, table)


QUARTER = {layer: width // 4 for layer, width in VGG.items()}
MIXED = ["threshold-0.4", "threshold-0.6", "macs-0.5", "params-0.1"]  # sizes of every kind
WIDTHS = ["own", "scap", "uniform-scap"]
WIDE = {layer: 2 * width for layer, width in VGG.items()}
FIGURES = {
    "method": lambda folder: method_figure(method(folder / "m.csv", 16, 16)),
    "method-2x2": lambda folder: method_figure(method(folder / "m.csv", 2, 2)),
    "method-12x20": lambda folder: method_figure(method(folder / "m.csv", 12, 20)),
    "scores": lambda folder: scores_figure(scores(folder / "s.csv", VGG), 0.6, "vgg16, scap"),
    "scores-quarter": lambda folder: scores_figure(scores(folder / "s.csv", QUARTER), 0.6),
    "scores-few": lambda folder: scores_figure(scores(folder / "s.csv", {"first": 4, "second": 7}), 0.6),
    "scores-resnet": lambda folder: scores_figure(scores(folder / "s.csv", RESNET), 0.6, "resnet20"),
    "scores-l1": lambda folder: scores_figure(scores(folder / "s.csv", VGG, False), 0.6),
    "scores-budget": lambda folder: scores_figure(scores(folder / "s.csv", VGG), title="vgg16, scap"),
    "channels": lambda folder: channels_figure(channels(folder / "c.csv", VGG)),
    "channels-wide": lambda folder: channels_figure(channels(folder / "c.csv", WIDE)),
    "channels-resnet": lambda folder: channels_figure(channels(folder / "c.csv", RESNET)),
    "tradeoff": lambda folder: tradeoff_figure(runs(folder / "r.csv")),
    "tradeoff-point": lambda folder: tradeoff_figure(runs(folder / "r.csv", sizes=["threshold-0.6"], spread=[0])),
    "tradeoff-many": lambda folder: tradeoff_figure(runs(folder / "r.csv", criteria=CRITERIA, schedule=SCHEDULES)),
    "tradeoff-axes": lambda folder: tradeoff_figure(
        runs(
            folder / "r.csv",
            criteria=CRITERIA[:2],
            sizes=MIXED,
            widths=WIDTHS,
            compensation=["none", "full"],
            schedule=SCHEDULES,
        )
    ),
    "headline": lambda folder: headline_figure(runs(folder / "r.csv", criteria=CRITERIA[:4])),
    "headline-point": lambda folder: headline_figure(runs(folder / "r.csv", sizes=["macs-0.0989-params-0.037"], spread=[0])),
    "sensitivity": lambda folder: sensitivity_figure(sensitivity(folder / "s.csv")),
    "sensitivity-two": lambda folder: sensitivity_figure(sensitivity(folder / "s.csv", criteria=2, seeds=[0])),
    "finetuning": lambda folder: finetuning_figure({"scap": history(folder / "h.csv", 20)}),
    "finetuning-epoch": lambda folder: finetuning_figure(
        {"scap": history(folder / "h.csv", 1)}, "vgg16, seed 0, threshold-0.6"
    ),
    "finetuning-many": lambda folder: finetuning_figure({name: history(folder / f"{name}.csv", 20) for name in CRITERIA}),
}
