"""The method on one channel, drawn from its table of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scap.errors import ScapError
from scap.figures.style import PAGE, new_figure, styled
from scap.reading import read_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

IMAGES = {"input": "input (real part)", "output": "output (imaginary part)"}
SPECTRA = {"spectrum": "spectrum", "reconstruction": "reconstruction"}


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
