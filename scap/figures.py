"""Figures drawn from the CSV tables of the runs: one function a figure, each returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scap.errors import ScapError
from scap.figure_runs import finetuning_figure, tradeoff_figure
from scap.figure_studies import study_figure
from scap.figure_style import (
    COLOURS,
    DASHES,
    FONT,
    PAGE,
    add_legend,
    crowded,
    label_layers,
    new_figure,
    read_table,
    save,
    styled,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = [
    "channels_figure",
    "fidelity_figure",
    "finetuning_figure",
    "method_figure",
    "save",
    "study_figure",
    "tradeoff_figure",
]

KEPT, PRUNED, BEFORE = COLOURS[0], COLOURS[1], "#C9D9E5"
IMAGES = {"input": "input (real part)", "output": "output (imaginary part)"}
SPECTRA = {"spectrum": "spectrum", "reconstruction": "reconstruction"}
QUANTITIES = {"fidelity": "fidelity (cosine)", "score": "score (dimensionless)"}


@styled
def method_figure(method_csv: Path | str) -> Figure:
    """The method on one channel: interaction field (input, output), spectrum, reconstruction.

    Reads panel, row, column, value; the spectra hold log10 power, fftshifted, and share one colour scale
    that starts at their first percentile.
    """
    table = read_table(method_csv, ["panel"], ["row", "column", "value"])
    images = {panel: _pixels(table, panel, method_csv) for panel in IMAGES | SPECTRA}
    figure = new_figure(PAGE, 2.4)
    axes = dict(zip(images, figure.subplots(1, 4), strict=True))
    for panel, title in IMAGES.items():
        shown = _show_image(axes[panel], images[panel], title)
        figure.colorbar(shown, ax=axes[panel], location="bottom", label="activation (arb. unit)")
    limits, extend = _colour_limits([images[panel] for panel in SPECTRA])
    for panel, title in SPECTRA.items():
        shown = _show_spectrum(axes[panel], images[panel], title, limits)
    label = "log10 of the power summed over input channels (arb. unit)"
    both = [axes[panel] for panel in SPECTRA]
    figure.colorbar(shown, ax=both, location="bottom", label=label, aspect=45, extend=extend)
    return figure


def _pixels(table: pd.DataFrame, panel: str, path: Path | str) -> np.ndarray:
    """The panel's values as an image (rows, columns)."""
    rows = table[table["panel"] == panel]
    if rows.empty:
        raise ScapError(f"{path}: column 'panel' holds no {panel!r}; write the table again")
    if rows.duplicated(["row", "column"]).any():
        raise ScapError(f"{path}: panel {panel!r} has a pixel (columns 'row', 'column') twice; write it again")
    return rows.pivot(index="row", columns="column", values="value").to_numpy()


def _colour_limits(images: Sequence[np.ndarray]) -> tuple[tuple[float, float], str]:
    """First percentile to maximum: a few empty frequencies (-inf and near) must not take the whole scale."""
    import numpy as np

    values = np.concatenate([image.ravel() for image in images])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (0.0, 1.0), "neither"
    low = float(np.percentile(finite, 1, method="lower"))
    return (low, float(finite.max())), "min" if (values < low).any() else "neither"


def _show_image(axes: Axes, image: np.ndarray, title: str) -> AxesImage:
    from matplotlib.ticker import MaxNLocator

    axes.set(title=title, xlabel="column (px)", ylabel="row (px)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    return axes.imshow(image, cmap="gray", interpolation="nearest")


def _show_spectrum(axes: Axes, image: np.ndarray, title: str, limits: tuple[float, float]) -> AxesImage:
    """The image over its frequencies: bin i of n, fftshifted, is centred on (i - n // 2) / n per pixel."""
    (top, bottom), (left, right) = [((-0.5 - n // 2) / n, (n - 0.5 - n // 2) / n) for n in image.shape]
    extent = (left, right, bottom, top)
    shown = axes.imshow(image, extent=extent, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set(title=title, xlabel="frequency u (1/px)", ylabel="frequency v (1/px)")
    axes.set_xticks([tick for tick in (-0.5, 0, 0.25) if left <= tick < right])
    axes.set_yticks([tick for tick in (-0.5, -0.25, 0, 0.25) if top <= tick < bottom])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    return shown


@styled
def fidelity_figure(scores_csv: Path | str, threshold: float, title: str = "") -> Figure:
    """Fidelity and score of every channel by layer, with the threshold and the share of scores above it.

    Reads layer, channel, fidelity, score; where no fidelity is given (L1, random) only the score is drawn.
    """
    from matplotlib.lines import Line2D

    table = read_table(scores_csv, ["layer"], ["channel", "score"], ["fidelity"])
    columns = [column for column in QUANTITIES if table[column].notna().any()]
    figure = new_figure(PAGE, 0.6 + 1.5 * len(columns))
    panels = figure.subplots(len(columns), sharex=True, squeeze=False)[:, 0]
    for axes, column in zip(panels, columns, strict=True):
        _strip(axes, table, column, threshold)
        axes.set_ylabel(QUANTITIES[column])
    layers = list(dict.fromkeys(table["layer"]))
    label_layers(panels[-1], layers)
    tau = panels[-1].axhline(threshold, color="black", linestyle=DASHES[1], label=f"τ = {threshold:g}")
    _share_above(panels[-1], table, layers, threshold)
    dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 3}
    kept = Line2D([], [], color=KEPT, label="score ≥ τ", **dots)
    pruned = Line2D([], [], color=PRUNED, label="score < τ", **dots)
    add_legend(figure, [kept, pruned, Line2D([], [], color="black", linewidth=2, label="median"), tau])
    if title:
        figure.suptitle(title)
    return figure


def _strip(axes: Axes, table: pd.DataFrame, column: str, threshold: float) -> None:
    """One dot for each channel, coloured by the threshold, and the median of each layer."""
    position = {layer: index for index, layer in enumerate(dict.fromkeys(table["layer"]))}
    # Multiples of the golden ratio spread the dots evenly and are the same in every drawing.
    x = table["layer"].map(position) + 0.7 * ((table["channel"] * 0.6180339887) % 1 - 0.5)
    colours = [KEPT if kept else PRUNED for kept in table["score"] >= threshold]
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

    table = read_table(channels_csv, ["layer"], ["before", "after"])
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
