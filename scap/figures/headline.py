"""Our runs among published ones, each at its own size."""

from __future__ import annotations

from functools import partial
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.figures.runs import REMOVED, tradeoff_figure
from scap.figures.style import MARKERS, add_legend, styled
from scap.published import ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.2  # inches, without the legend


@styled
def headline_figure(runs_csv: Path | str) -> Figure:
    """The trade-off of our runs (`tradeoff_figure`, which says what is read) and, in grey, published rows of VGG16 on CIFAR-10.

    Those are single points of other trainings, printed by their authors: they place ours, they are no controls. Where runs of
    ours lie far below them, the part of the axis below a line is drawn narrower.
    """
    figure = tradeoff_figure(runs_csv)
    (legend,) = figure.legends
    ours, title = legend.legend_handles, legend.get_title().get_text()
    legend.remove()
    for axes, column in zip(figure.axes, REMOVED, strict=True):
        axes.set_xlim(auto=True)  # a comparison at one size has narrowed it
        theirs = [
            axes.plot(100 * getattr(row, column), row.top1, label=row.name, **_look(index))[0] for index, row in enumerate(ROWS)
        ]
    _magnify(figure.axes[0])
    figure.set_layout_engine("constrained")  # it has been laid out without these
    figure.set_figheight(HEIGHT)
    add_legend(figure, [*filter(None, ours), *theirs], title)
    return figure


def _magnify(axes: Axes) -> None:
    """Give three quarters of the height to what lies about the published rows, if anything lies below; from 0 %."""
    low, foot = max(0, axes.get_ylim()[0]), 5 * floor(min(row.top1 for row in ROWS) / 5) - 5
    if low >= foot:
        return
    high = axes.dataLim.y1 + 1
    narrower = (high - foot) / (foot - low) / 3
    axes.set_yscale("function", functions=(partial(_bend, foot, narrower), partial(_bend, foot, 1 / narrower)))
    axes.set_ylim(low, high)
    axes.set_yticks([*range(0, foot - 20, 20), *range(foot, floor(high) + 1, 5)])
    axes.set_ylim(low, high)  # ticks have widened it
    for each in axes.figure.axes:
        each.axhline(foot, color="0.7", linewidth=0.6, zorder=0)


def _bend(foot: float, narrower: float, top1: Any) -> Any:
    """Distances from `foot`, those below it times `narrower`; begins at `foot` again."""
    import numpy as np

    distance = np.asarray(top1, dtype=float) - foot
    return foot + np.where(distance < 0, narrower * distance, distance)


def _look(index: int) -> dict[str, Any]:
    """A grey marker of its own; the published SCAP's is black and filled."""
    colour = {"markeredgecolor": "0.35", "markerfacecolor": "white"} if index else {"color": "black"}
    return {"marker": MARKERS[-1 - index % len(MARKERS)], "linestyle": "none", "markersize": 5 if index else 7, **colour}
