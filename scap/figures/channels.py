"""Scores of channels, and how many of them are kept, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.figures.style import COLOURS, DASHES, FONT, PAGE, add_legend, crowded, label_layers, new_figure, styled
from scap.reading import COUNT, FRACTION, channel_values, read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT, PRUNED, BEFORE = COLOURS[0], COLOURS[1], "#C9D9E5"
QUANTITIES = {"fidelity": "fidelity (cosine)", "score": "score (dimensionless)"}


@styled
def scores_figure(scores_csv: Path | str, threshold: float | None = None, title: str = "") -> Figure:
    """Score of every channel by layer, and fidelity where the criterion has it, with the threshold if there is one.

    Reads layer, channel, score and, if it is there, fidelity.
    """
    from matplotlib.lines import Line2D

    table = read_table(scores_csv, ["layer"], ["channel", "score"])
    channel_values(table, "score", FRACTION, source=scores_csv)
    columns = [column for column in QUANTITIES if column in table]
    table = read_table(scores_csv, ["layer"], ["channel", *columns])
    figure = new_figure(PAGE, 0.6 + 1.5 * len(columns))
    panels = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
    for axes, column in zip(panels, columns, strict=True):
        _strip(axes, table, column, threshold)
        axes.set_ylabel(QUANTITIES[column])
    layers = list(dict.fromkeys(table["layer"]))
    label_layers(panels[-1], layers)
    handles = [Line2D([], [], color="black", linewidth=2, label="median")]
    if threshold is not None:
        tau = panels[-1].axhline(threshold, color="black", linestyle=DASHES[1], label=f"τ = {threshold:g}")
        _share_above(panels[-1], table, layers, threshold)
        dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3}
        kept = Line2D([], [], color=KEPT, label="score ≥ τ", **dots)
        handles = [kept, Line2D([], [], color=PRUNED, label="score < τ", **dots), *handles, tau]
    add_legend(figure, handles)
    if title:
        figure.suptitle(title)
    return figure


def _strip(axes: Axes, table: pd.DataFrame, column: str, threshold: float | None) -> None:
    """One dot for each channel, coloured by the threshold, and the median of each layer."""
    position = {layer: index for index, layer in enumerate(dict.fromkeys(table["layer"]))}
    # Multiples of the golden ratio spread the dots evenly and are the same in every drawing.
    x = table["layer"].map(position) + 0.7 * ((table["channel"] * 0.6180339887) % 1 - 0.5)
    colours = [KEPT if threshold is None or score >= threshold else PRUNED for score in table["score"]]
    size = min(8.0, max(2.5, 6000 / len(table)))
    axes.scatter(x, table[column], s=size, c=colours, linewidths=0, alpha=0.7)
    medians = table.groupby("layer")[column].median()
    for layer, index in position.items():
        axes.hlines(medians[layer], index - 0.4, index + 0.4, color="black", linewidth=1.5)


def _share_above(axes: Axes, table: pd.DataFrame, layers: Sequence[str], threshold: float) -> None:
    """Write each layer's share of scores at or above the threshold along the top."""
    share = 100 * (table["score"] >= threshold).groupby(table["layer"]).mean()
    top = axes.secondary_xaxis("top")
    top.set_xticks(range(len(layers)), labels=[_percent(share[layer]) for layer in layers])
    top.tick_params(length=0)
    top.spines["top"].set_visible(False)
    top.set_xlabel("channels with score ≥ τ (%)")


def _percent(value: float) -> str:
    """Whole per cent, but one decimal below one: 2 of 512 channels are not none."""
    return f"{value:.1f}" if 0 < value < 1 else f"{value:.0f}"


@styled
def channels_figure(channels_csv: Path | str) -> Figure:
    """Channels of each layer before and after pruning, with both numbers and the per cent kept.

    Reads layer, before, after.
    """
    from matplotlib.ticker import MaxNLocator

    limits = dict.fromkeys(["before", "after"], COUNT)
    table = read_table(channels_csv, ["layer"], ["before", "after"], limits=limits, whole=list(limits))
    before, after = table["before"], table["after"]
    counts = [f"{kept:.0f}/{all_:.0f}" for kept, all_ in zip(after, before, strict=True)]
    upright = crowded(counts)
    figure = new_figure(PAGE, 2.7 if upright else 2.2)
    axes = figure.subplots()
    bars = [
        axes.bar(range(len(table)), column, color=colour, label=f"{name} pruning ({column.sum():,.0f} in all)")
        for name, column, colour in (("before", before, BEFORE), ("after", after, KEPT))
    ]
    shares = [f"{_percent(share)} %" for share in 100 * after / before]
    texts = [f"{c} ({s})" if upright else f"{c}\n{s}" for c, s in zip(counts, shares, strict=True)]
    axes.bar_label(bars[0], labels=texts, padding=2, fontsize=FONT, rotation=90 if upright else 0)
    axes.set_ylim(0, before.max() * (1.75 if upright else 1.2))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylabel("number of output channels")
    label_layers(axes, list(table["layer"]))
    add_legend(figure, bars)
    return figure
