"""Spectra of activations: the half plane of a real FFT as orthonormal real coordinates (docs/method.md, equation 2).

X and Y are real, so X̂(-f) is the conjugate of X̂(f): half of the frequency plane holds everything. It is stored as H·W real
numbers per map, weighted so that the map from space to coordinates is orthonormal:

    [ Re at the self-conjugate frequencies | √2·Re at the others | √2·Im at the others ]

In the control `domain: space` the coordinates are the pixels, all of them "self-conjugate"; nothing else changes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from scap.errors import DamagedFile, ScapError
from scap.reading import open_tensors
from scap.tensors import TensorFile

DOMAINS = ("frequency", "space")
CACHED = 2**21  # numbers that are transformed at a time


@dataclass(frozen=True)
class Layout:
    """How the H·W coordinates of a map are ordered: `real` self-conjugate frequencies, then Re and Im of the others."""

    height: int
    width: int
    domain: str = "frequency"

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ScapError(f"domain '{self.domain}' is unknown; choose one of {', '.join(DOMAINS)}")

    @property
    def size(self) -> int:
        """Number of coordinates, H·W."""
        return self.height * self.width

    @property
    def real(self) -> int:
        """Number of coordinates without an imaginary part."""
        if self.domain == "space":
            return self.size
        return (2 - self.height % 2) * (2 - self.width % 2)

    @property
    def frequencies(self) -> int:
        """Number of independent frequencies (f and -f count once)."""
        return (self.size + self.real) // 2


@lru_cache(maxsize=64)
def half_plane(height: int, width: int) -> Tensor:
    """Flat indices into the (H, W) plane of one frequency of each pair ±f, the self-conjugate ones first."""
    u, v = torch.meshgrid(torch.arange(height, device="cpu"), torch.arange(width, device="cpu"), indexing="ij")
    flat, mirrored = u * width + v, (-u % height) * width + (-v % width)
    half = width // 2  # rfft2 gives the columns 0 … half only
    first = (v <= half) & ((-v % width > half) | (flat < mirrored))
    return torch.cat([flat[flat == mirrored], flat[first]])


def mirror(indices: Tensor, height: int, width: int) -> Tensor:
    """Flat indices of the frequencies -f."""
    return (-(indices // width) % height) * width + (-(indices % width) % width)


def coordinates(maps: Tensor, layout: Layout) -> Tensor:
    """Orthonormal coordinates of real maps: (..., H, W) -> (..., H·W); ‖coordinates‖ = ‖maps‖ (Parseval)."""
    if layout.domain == "space":
        return maps.flatten(-2)
    spectrum = torch.view_as_real(torch.fft.rfft2(maps, norm="ortho")).flatten(-3)  # Re, Im of the left half, row by row
    plane = half_plane(layout.height, layout.width).to(maps.device)
    re = 2 * (plane // layout.width * (layout.width // 2 + 1) + plane % layout.width)
    index = torch.cat([re, re[layout.real :] + 1])
    scale = maps.new_full(index.shape, 2**0.5)
    scale[: layout.real] = 1
    return spectrum.gather(-1, index.expand(*spectrum.shape[:-1], -1)).mul_(scale)  # gather: the quickest way to choose


def resize(outputs: Tensor, height: int, width: int) -> Tensor:
    """Y spatially aligned to its layer's input: bilinear, (N, K, H', W') -> (N, K, H, W); unchanged where sizes agree."""
    if outputs.shape[-2:] == (height, width):
        return outputs
    return interpolate(outputs, size=(height, width), mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Spectra:
    """A layer's cached spectra: `inputs` (N, C, H·W) and `outputs` (N, K, H·W) in the coordinates of `layout`.

    `copies` is C, where `inputs` are in other coordinates than those of C channels (scap.criterion.span).
    """

    inputs: Tensor
    outputs: Tensor
    layout: Layout
    copies: int = 0

    def __post_init__(self) -> None:
        n, size = self.inputs.shape[0], self.inputs.shape[-1]
        if self.outputs.shape[0] != n or self.outputs.shape[-1] != size or size != self.layout.size:
            raise ScapError(
                f"spectra do not fit together: inputs {tuple(self.inputs.shape)}, outputs {tuple(self.outputs.shape)}, "
                f"layout {self.layout.height}x{self.layout.width}"
            )

    @property
    def images(self) -> int:
        """Number of calibration images N."""
        return self.inputs.shape[0]

    @property
    def input_channels(self) -> int:
        """Number of input channels C."""
        return self.copies or self.inputs.shape[1]

    @property
    def precision(self) -> torch.dtype:
        """The precision of the arithmetic: float32, or float64 where the spectra are stored so."""
        return torch.promote_types(self.inputs.dtype, torch.float32)

    @property
    def channels(self) -> int:
        """Number of output channels K."""
        return self.outputs.shape[1]

    def to(self, device: str | torch.device) -> "Spectra":
        """The spectra on a device; on the one where they are, no copy: a memory map stays one."""
        return replace(self, inputs=self.inputs.to(device), outputs=self.outputs.to(device))

    def batch(self, images: slice | Tensor) -> "Spectra":
        """The spectra of some images in `precision`."""
        inputs, outputs = (_take(part, images, self.precision) for part in (self.inputs, self.outputs))
        return replace(self, inputs=inputs, outputs=outputs)

    def batches(self, size: int) -> Iterator["Spectra"]:
        """All images in order, `size` at a time."""
        for start in range(0, self.images, size):
            yield self.batch(slice(start, start + size))


def _take(tensor: Tensor, images: slice | Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor[images] if isinstance(images, slice) else tensor.index_select(0, images)).to(dtype)


def spectra_of(inputs: Tensor, outputs: Tensor, domain: str = "frequency") -> Spectra:
    """Spectra of one layer's activations: X (N, C, H, W) and Y (N, K, H', W'), Y resized to H×W."""
    height, width = inputs.shape[-2:]
    layout = Layout(height, width, domain)
    return Spectra(coordinates(inputs, layout), coordinates(resize(outputs, height, width), layout), layout)


def open_activations(path: str | Path, layer: str) -> tuple[Tensor, Tensor]:
    """X (N, C, H, W) and Y (N, K, H', W') of a layer from an activation file, memory-mapped; DamagedFile where they are not."""
    with open_tensors(path) as file:
        inputs = file.take(f"{layer}.inputs", ("N", "C", "H", "W"))
        return inputs, file.take(f"{layer}.outputs", ("N", "K", "H'", "W'"))


def write_spectra(
    activations: str | Path,
    layer: str,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    batch_size: int | None = None,
    report: Callable[[dict[str, int]], None] | None = None,
) -> None:
    """Transform a layer's activations into its spectra file, `batch_size` images at a time: by default what a cache holds.

    Raises ScapError where the activations are missing or damaged, or the spectra overflow `dtype`.
    """
    inputs, outputs = open_activations(activations, layer)
    (n, c, height, width), k = inputs.shape, outputs.shape[1]
    shapes = {"inputs": (n, c, height * width), "outputs": (n, k, height * width)}
    batch_size = batch_size or max(1, CACHED // ((c + k) * height * width))
    metadata = {"layer": layer, "height": str(height), "width": str(width)}
    with TensorFile(Path(path), shapes, dtype, metadata=metadata) as file:
        for start in range(0, n, batch_size):
            part = slice(start, start + batch_size)
            spectra = spectra_of(inputs[part].float(), outputs[part].float())
            file.append("inputs", spectra.inputs)
            file.append("outputs", spectra.outputs)
            if report:
                report({"images": min(start + batch_size, n), "total": n})


def open_spectra(path: str | Path, layer: str, domain: str = "frequency") -> Spectra:
    """A layer's cached spectra, memory-mapped: its spectra file, or for `domain: space` the activation file.

    DamagedFile where the file is missing, damaged or of another layer.
    """
    if domain == "space":
        inputs, outputs = open_activations(path, layer)
        height, width = inputs.shape[-2:]
        aligned = resize(outputs.float(), height, width).to(outputs.dtype) if outputs.shape[-2:] != (height, width) else outputs
        return Spectra(inputs.flatten(2), aligned.flatten(2), Layout(height, width, domain))
    with open_tensors(path) as file:
        file.check_identity({"layer": layer})
        inputs, outputs = file.take("inputs", ("N", "C", "H·W")), file.take("outputs", ("N", "K", "H·W"))
        sizes = [file.metadata.get(key, "") for key in ("height", "width")]
    if not all(size.isdecimal() for size in sizes) or int(sizes[0]) * int(sizes[1]) != inputs.shape[2]:
        raise DamagedFile(path, f"has {inputs.shape[2]} coordinates, but height and width {sizes}")
    return Spectra(inputs, outputs, Layout(int(sizes[0]), int(sizes[1])))
