"""What the figures share: style, palette, legend, reproducible writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from scap.errors import ScapError
from scap.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")

COLUMN, PAGE = 3.4, 7.0  # inches: the width of one column and of two
FONT = 7  # points
DPI = 200
STYLE: dict[str, Any] = {
    **dict.fromkeys(["font.size", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"], FONT),
    **dict.fromkeys(["axes.labelsize", "axes.titlesize", "legend.title_fontsize"], FONT),
    **{"figure.titlesize": FONT + 1, "axes.linewidth": 0.6, "lines.linewidth": 1.0, "lines.markersize": 4},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"pdf.fonttype": 42, "figure.dpi": DPI},  # TrueType: text in the PDF stays text
}
# Okabe & Ito (2008), safe for the colour-blind; grey replaces its yellow, which is lost on white. Wine and olive: Tol (2021).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "*")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
# Dates and versions left out, so that the same figure gives the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": dict.fromkeys(["CreationDate", "Creator", "Producer"]),
}


def save(figure: Figure, paths: Iterable[Path | str]) -> None:
    """Write the figure to every path (.png at 200 dpi, .pdf), the same bytes each time; else ScapError."""
    from matplotlib import style

    for path in map(Path, paths):
        if path.suffix not in METADATA:
            raise ScapError(f"{path}: figures are written as {' or '.join(METADATA)}, not {path.suffix!r}")
        image = BytesIO()
        with style.context(["default", STYLE]):
            figure.savefig(image, format=path.suffix[1:], dpi=DPI, metadata=METADATA[path.suffix])
        write_whole(path, image.getvalue())


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw in the style above, whatever the user's own is, and lay the figure out once."""

    @wraps(draw)
    def draw_styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        from matplotlib import style

        with style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # PNG and PDF share this one layout
        return figure

    return draw_styled


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that pyplot does not know, so none has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def crowded(texts: Sequence[str]) -> bool:
    """Whether texts of FONT points, one for each layer, touch across a page (0.65 em a letter)."""
    room = 72 * (PAGE - 0.6) / len(texts)
    return 0.65 * FONT * max(map(len, texts)) > room


def label_layers(axes: Axes, layers: Sequence[str]) -> None:
    """A tick for each layer; names that would touch stand upright and the figure grows by their height."""
    upright = crowded(layers)
    if upright and (figure := axes.get_figure(root=True)):
        figure.set_figheight(figure.get_figheight() + 0.6 * FONT * max(map(len, layers)) / 72)
    axes.set_xticks(range(len(layers)), labels=layers, rotation=90 if upright else 0)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_xlabel("layer")


def line_style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th line."""
    marker = {"marker": MARKERS[index % len(MARKERS)], "markeredgecolor": "white", "markeredgewidth": 0.4}
    return {"color": COLOURS[index % len(COLOURS)], **marker}


def add_legend(figure: Figure, handles: Sequence[Any], title: str = "") -> None:
    """A legend below the panels, as wide as its longest label allows; the figure grows by its height."""
    longest = max(len(handle.get_label()) for handle in handles)
    fitting = max(1, int(72 * figure.get_figwidth() / (0.6 * FONT * longest + 5 * FONT)))
    rows = ceil(len(handles) / fitting)
    columns = ceil(len(handles) / rows)
    figure.set_figheight(figure.get_figheight() + 1.55 * FONT * (rows + bool(title)) / 72 + 0.1)
    figure.legend(handles=handles, title=title or None, loc="outside lower center", ncols=columns)
