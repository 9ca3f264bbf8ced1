"""Our runs among published ones, each at its own size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.figures.runs import REMOVED, tradeoff_figure
from scap.figures.style import MARKERS, add_legend, styled
from scap.published import ROWS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT = 3.2  # inches, without the legend


@styled
def headline_figure(runs_csv: Path | str) -> Figure:
    """The trade-off of our runs (`tradeoff_figure`, which says what is read) and, in grey, published rows of VGG16 on CIFAR-10.

    Those are single points of other trainings, printed by their authors: they place ours, they are no controls.
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
    figure.set_layout_engine("constrained")  # it has been laid out without these
    figure.set_figheight(HEIGHT)
    add_legend(figure, [*filter(None, ours), *theirs], title)
    return figure


def _look(index: int) -> dict[str, Any]:
    """A grey marker of its own; the published SCAP's is black and filled."""
    colour = {"markeredgecolor": "0.35", "markerfacecolor": "white"} if index else {"color": "black"}
    return {"marker": MARKERS[-1 - index % len(MARKERS)], "linestyle": "none", "markersize": 5 if index else 7, **colour}
