"""Interpretations of the criterion side by side, without any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scap.figures.runs import joined, size_in_words
from scap.figures.style import COLOURS, FONT, MARKERS, PAGE, add_legend, new_figure, styled
from scap.published import PUBLISHED
from scap.reading import read_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

REMOVED = {"macs_removed": "FLOPs removed", "params_removed": "parameters removed"}
RANKS = {"rank_correlation_first": "with the first", "rank_correlation_l1": "with the L1 norm"}


@styled
def sensitivity_figure(sensitivity_csv: Path | str) -> Figure:
    """A line for each criterion (network, widths, size), nearest to the published size on top: what is removed, how alike
    the rankings are.

    Reads network, criterion, widths, size, distance_to_published, macs_removed, params_removed (fractions),
    rank_correlation_first and rank_correlation_l1 (NaN: it ranks nothing). Points are means over seeds, bars reach from the
    lowest to the highest.
    """
    axes_of_runs = ["network", "criterion", "widths", "size"]
    table = read_table(sensitivity_csv, axes_of_runs, ["distance_to_published", *REMOVED], list(RANKS))
    table[list(REMOVED)] *= 100
    criteria = table.assign(line=joined(table, axes_of_runs)).groupby("line", sort=False)
    order = criteria["distance_to_published"].mean().sort_values(kind="stable").index[::-1]
    mean, low, high = (criteria[[*REMOVED, *RANKS]].agg(how).loc[order] for how in ("mean", "min", "max"))
    figure = new_figure(PAGE, 0.6 + 1.6 * FONT * len(order) / 72)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, columns, first in ((left, REMOVED, 0), (right, RANKS, 2)):
        for index, (column, label) in enumerate(columns.items(), first):
            error = [(mean[column] - low[column]).clip(0), (high[column] - mean[column]).clip(0)]  # rounding may fall below 0
            look = {"color": COLOURS[index], "marker": MARKERS[index], "markeredgecolor": "white", "markeredgewidth": 0.4}
            axes.errorbar(
                mean[column], range(len(order)), xerr=error, label=label, linestyle="", elinewidth=0.6, capsize=1.5, **look
            )
    for index, value in enumerate(PUBLISHED.values()):
        left.axvline(100 * value, color=COLOURS[index], linewidth=0.8, linestyle=(0, (4, 1.5)), zorder=0)
    right.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    left.set_yticks(range(len(order)), labels=order)
    left.set(xlabel=f"removed{_at_size(table['size'])} (%); dashed: published", ylim=(-0.6, len(order) - 0.4))
    right.set(xlabel="rank correlation within a layer")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    add_legend(figure, [*left.containers, *right.containers])
    return figure


def _at_size(sizes: pd.Series) -> str:
    """The size that all have, for a label."""
    return f" at {size_in_words(sizes.iloc[0])}" if sizes.nunique() == 1 else ""
