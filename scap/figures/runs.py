"""Figures that compare runs: accuracy against size, and the course of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.errors import ScapError
from scap.figures.style import COLUMN, DASHES, PAGE, add_legend, line_style, new_figure, styled
from scap.reading import PERCENT, read_history, read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {"threshold": "τ =", "macs": "share of FLOPs left", "params": "share of parameters left"}
FILLS = ("", "", "left", "bottom", "right", "top")  # half a marker; "": all of the first, nothing of the second
REMOVED = {"macs_removed": "FLOPs removed (%)", "params_removed": "parameters removed (%)"}


@styled
def tradeoff_figure(runs_csv: Path | str) -> Figure:
    """Top-1 against FLOPs and parameters removed: a colour a criterion, a dash a compensation and schedule, a point a size.

    Reads network, seed, criterion, widths, size, compensation, schedule, top1_baseline and top1 (per cent), macs_removed and
    params_removed (fractions). Points are means over seeds, bars the sample standard deviation.
    """
    axes_of_runs = ["network", "criterion", "widths", "size", "compensation", "schedule"]
    limits = {"top1": PERCENT, "top1_baseline": PERCENT} | dict.fromkeys(REMOVED, (-1e6, 1.0))
    runs = read_table(runs_csv, axes_of_runs, ["seed", "top1_baseline", "top1", *REMOVED], limits=limits)
    runs[list(REMOVED)] *= 100
    baselines = runs.drop_duplicates(["network", "seed"]).groupby("network", sort=False)["top1_baseline"].mean()
    runs["line"], runs["look"] = joined(runs, ["network", "criterion", "widths"]), joined(runs, ["compensation", "schedule"])
    figure = new_figure(PAGE, 2.5)
    for axes, (column, label) in zip(figure.subplots(1, 2, sharey=True), REMOVED.items(), strict=True):
        _curves(axes, runs, column)
        for index, top1 in enumerate(baselines):
            axes.axhline(top1, zorder=1, **_baseline_style(index))
        axes.set_xlabel(label)
        axes.label_outer()
    figure.axes[0].set_ylabel("top-1 (%)")
    add_legend(figure, _tradeoff_handles(runs, baselines), _describe(runs))
    return figure


def joined(runs: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The columns that tell runs apart as one text a run; the criterion always."""

    named = [column for column in columns if column == "criterion" or runs[column].nunique() > 1]
    texts = ["widths: {}" if column == "widths" else "{}" for column in named]
    return (
        runs[named].apply(lambda row: ", ".join(map(str.format, texts, row)), axis=1)
        if named
        else runs["seed"].map(lambda _: "")
    )


def _baseline_style(index: int) -> dict[str, Any]:
    return {"color": "black", "linewidth": 0.8, "linestyle": DASHES[2 + index % 2]}


def _dashes(index: int, colour: str) -> dict[str, Any]:
    """Dashes of a compensation and schedule, and what of the marker is filled, which tells single points apart."""
    marker: dict[str, Any] = {"markeredgecolor": colour, "markeredgewidth": 0.8} if index else {}
    if fill := FILLS[index % len(FILLS)]:
        marker |= {"fillstyle": fill, "markerfacecoloralt": "white"}
    elif index:
        marker |= {"markerfacecolor": "white"}
    return {"linestyle": DASHES[index % len(DASHES)], **marker}


def _curves(axes: Axes, runs: pd.DataFrame, column: str) -> None:
    """The means over seeds of top-1 against this column, with the spread over seeds both ways."""
    looks = list(runs["look"].unique())
    for index, line in enumerate(runs["line"].unique()):
        for look, points in runs[runs["line"] == line].groupby("look", sort=False):
            values = points.groupby("size")[[column, "top1"]]
            mean, spread = values.mean().sort_values(column), values.std()
            spread = spread.loc[mean.index]
            several = bool(spread["top1"].notna().any())
            bars = {"xerr": spread[column], "yerr": spread["top1"]} if several else {}
            bars |= {"elinewidth": 0.6, "capsize": 1.5, "label": f"{line} ({look})"}
            style = line_style(index) | _dashes(looks.index(look), line_style(index)["color"])
            axes.errorbar(mean[column], mean["top1"], **style, **bars)
    low, high = runs[column].min(), runs[column].max()
    if high - low < 5:  # one size: equal widths must not be blown up to a scale of thousandths
        left = min((low + high) / 2 - 2.8, 94.3)
        axes.set_xlim(left, left + 5.6)


def _tradeoff_handles(runs: pd.DataFrame, baselines: pd.Series) -> list[Any]:
    """Legend entries: a colour and marker a line, a dash a compensation and schedule (if several), the baselines."""
    from matplotlib.lines import Line2D

    entries = [(name, line_style(index)) for index, name in enumerate(runs["line"].unique())]
    looks = runs["look"].unique()
    if len(looks) > 1:
        entries += [(look, {"color": "0.3", "marker": "o", **_dashes(index, "0.3")}) for index, look in enumerate(looks)]
    for index, (network, top1) in enumerate(baselines.items()):
        prefix = f"{network} " if len(baselines) > 1 else ""
        entries.append((f"{prefix}baseline ({top1:.2f} %)", _baseline_style(index)))
    return [Line2D([], [], label=label, **look) for label, look in entries]


def size_in_words(size: str) -> str:
    """A size as it stands in the path of a run: `macs-0.5` as "share of FLOPs left 0.5"."""
    parts = (part.partition("-") for part in size.replace("-params-", " params-").split())
    return " and ".join(f"{SIZES.get(kind, kind)} {value}" for kind, _, value in parts)


def _describe(runs: pd.DataFrame) -> str:
    """Which sizes and how many seeds the points stand for, and what all runs share."""
    parts, single = [], dict[str, list[float]]()
    for size in runs["size"].unique():
        kind, _, value = size.partition("-")
        if "-params-" in size:
            parts.append(size_in_words(size))
        else:
            single.setdefault(kind, []).append(float(value))
    for kind, numbers in sorted(single.items()):
        numbers.sort()
        text = ", ".join(f"{value:g}" for value in numbers)
        if len(numbers) > 6:
            text = f"{numbers[0]:g} to {numbers[-1]:g} ({len(numbers)} values)"
        parts.append(f"{SIZES.get(kind, kind)} {text}")
    seeds = runs.groupby(["line", "look", "size"])["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    parts.append("one seed" if seeds.max() == 1 else f"mean ± s.d. over {count} seeds")
    shared = [f"{key}: {runs[key].iloc[0]}" for key in ("compensation", "schedule") if runs[key].nunique() == 1]
    return "; ".join(["points: " + ", ".join(parts[:-1]), parts[-1], *shared])


@styled
def finetuning_figure(history_csvs: Mapping[str, Path | str], title: str = "") -> Figure:
    """Top-1 and loss after each epoch of fine-tuning, one curve for each labelled history; `title`: what they share.

    Reads epoch, loss, train_top1, holdout_top1 (per cent); without held-out images train_top1 is drawn.
    """
    if not history_csvs:
        raise ScapError("no history to draw: give at least one label with its history table")
    histories = {label: read_history(path) for label, path in history_csvs.items()}
    held_out = {label: bool(history["holdout_top1"].notna().any()) for label, history in histories.items()}
    mixed = len(set(held_out.values())) > 1
    figure = new_figure(COLUMN, 2.8)
    top, bottom = figure.subplots(2, sharex=True)
    for index, (label, history) in enumerate(histories.items()):
        step = max(1, len(history) // 10)
        look = {**line_style(index), "markevery": (index % step, step)}  # staggered where curves coincide
        name = f"{label} (training)" if mixed and not held_out[label] else label
        column = "holdout_top1" if held_out[label] else "train_top1"
        top.plot(history["epoch"], history[column], label=name, **look)
        bottom.plot(history["epoch"], history["loss"], label=name, **look)
    images = "" if mixed else "hold-out " if all(held_out.values()) else "training "
    top.set_ylabel(f"{images}top-1 (%)")
    bottom.set(ylabel="training loss (nats)", xlabel="epoch")
    _whole_epochs(bottom, list(histories.values()))
    add_legend(figure, top.get_lines(), title)
    return figure


def _whole_epochs(axes: Axes, histories: Sequence[pd.DataFrame]) -> None:
    """Ticks at whole epochs only, also when there is just one."""
    from matplotlib.ticker import MaxNLocator

    epochs = sorted({int(epoch) for history in histories for epoch in history["epoch"]})
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_xticks(epochs)
