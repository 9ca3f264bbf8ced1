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

REMOVED = {"macs_removed": "FLOPs removed (%)", "params_removed": "parameters removed (%)"}


@styled
def tradeoff_figure(runs_csv: Path | str) -> Figure:
    """Top-1 against FLOPs and parameters removed: a line for each criterion and track, a point a threshold.

    Reads network, seed, criterion, threshold, track, top1_baseline and top1 (per cent), macs_removed and
    params_removed (fractions). Points are means over seeds, bars the sample standard deviation.
    """
    columns = ["seed", "threshold", "top1_baseline", "top1", *REMOVED]
    limits = {"top1": PERCENT, "top1_baseline": PERCENT} | dict.fromkeys(REMOVED, (-1e6, 1.0))
    runs = read_table(runs_csv, ["network", "criterion", "track"], columns, limits=limits)
    runs[list(REMOVED)] *= 100
    if runs["network"].nunique() > 1:
        runs["criterion"] = runs["network"] + " " + runs["criterion"]
    baselines = runs.drop_duplicates(["network", "seed"]).groupby("network", sort=False)["top1_baseline"].mean()
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


def _baseline_style(index: int) -> dict[str, Any]:
    return {"color": "black", "linewidth": 0.8, "linestyle": DASHES[2 + index % 2]}


def _track_style(index: int, colour: str) -> dict[str, Any]:
    """Dashes of a track, and open markers for all but the first, which tell single points apart."""
    marker = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 0.8} if index else {}
    return {"linestyle": DASHES[index % len(DASHES)], **marker}


def _curves(axes: Axes, runs: pd.DataFrame, column: str) -> None:
    """The means over seeds of top-1 against this column, with the spread over seeds both ways."""
    tracks = list(runs["track"].unique())
    for index, criterion in enumerate(runs["criterion"].unique()):
        for track, lines in runs[runs["criterion"] == criterion].groupby("track", sort=False):
            points = lines.groupby("threshold")[[column, "top1"]]
            mean, spread = points.mean(), points.std()
            several = bool(spread["top1"].notna().any())
            bars = {"xerr": spread[column], "yerr": spread["top1"]} if several else {}
            bars |= {"elinewidth": 0.6, "capsize": 1.5, "label": f"{criterion} ({track})"}
            look = line_style(index) | _track_style(tracks.index(track), line_style(index)["color"])
            axes.errorbar(mean[column], mean["top1"], **look, **bars)
    low, high = runs[column].min(), runs[column].max()
    if high - low < 5:  # one threshold: equal widths must not be blown up to a scale of thousandths
        left = min((low + high) / 2 - 2.8, 94.3)
        axes.set_xlim(left, left + 5.6)


def _tradeoff_handles(runs: pd.DataFrame, baselines: pd.Series) -> list[Any]:
    """Legend entries: a colour and marker a criterion, a dash a track (if several), the baselines."""
    from matplotlib.lines import Line2D

    looks = [(name, line_style(index)) for index, name in enumerate(runs["criterion"].unique())]
    tracks = runs["track"].unique()
    if len(tracks) > 1:
        looks += [
            (f"track: {track}", {"color": "0.3", "marker": "o", **_track_style(index, "0.3")})
            for index, track in enumerate(tracks)
        ]
    for index, (network, top1) in enumerate(baselines.items()):
        prefix = f"{network} " if len(baselines) > 1 else ""
        looks.append((f"{prefix}baseline ({top1:.2f} %)", _baseline_style(index)))
    return [Line2D([], [], label=label, **look) for label, look in looks]


def _describe(runs: pd.DataFrame) -> str:
    """Which thresholds, how many seeds and (if only one) which track the points stand for."""
    thresholds = sorted(runs["threshold"].unique())
    values = ", ".join(f"{value:g}" for value in thresholds)
    if len(thresholds) > 6:
        values = f"{thresholds[0]:g} to {thresholds[-1]:g} ({len(thresholds)} values)"
    seeds = runs.groupby(["criterion", "track", "threshold"])["seed"].nunique()
    count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    text = f"points: τ = {values}; " + ("one seed" if seeds.max() == 1 else f"mean ± s.d. over {count} seeds")
    return text + (f"; track: {runs['track'].iloc[0]}" if runs["track"].nunique() == 1 else "")


@styled
def finetuning_figure(history_csvs: Mapping[str, Path | str]) -> Figure:
    """Top-1 and loss after each epoch of fine-tuning, one curve for each labelled history.

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
    add_legend(figure, top.get_lines())
    return figure


def _whole_epochs(axes: Axes, histories: Sequence[pd.DataFrame]) -> None:
    """Ticks at whole epochs only, also when there is just one."""
    from matplotlib.ticker import MaxNLocator

    epochs = sorted({int(epoch) for history in histories for epoch in history["epoch"]})
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_xticks(epochs)
