"""Moments of what layers read, streamed over calibration images."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from scap.checks import check_dense
from scap.errors import ScapError
from scap.models.inputs import Example, device_and_precision, first_tensor, fitted, run
from scap.pruning.copies import first_line

FAINT = 1e-30  # largest mean square below which float32 loses squares
CANCELS = 300  # square of the largest mean over the mean variance from which float32 keeps too few digits of the variance
OTHER_WAY = "is not run for these images: the network chooses by values, or by the number of images, what it runs"
Receive = Callable[[str, Tensor, Tensor, int], None]  # layer, inputs, outputs, number of the first image


class _Enough(Exception):
    """All layers asked for have been read; the rest of the network need not run."""


def check_images(images: Tensor, batch_size: int) -> None:
    """Raise ScapError unless `images` are finite, (N, channels, H, W), and two at least."""
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) < 2:
        given = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ScapError(f"images: a tensor (N, channels, H, W) of at least 2 calibration images is needed, not {given}")
    check_dense(images, "images")
    if batch_size < 1:
        raise ScapError(f"batch_size is {batch_size}; give at least 1")
    if not images.isfinite().all():
        raise ScapError("images: they hold NaN or infinity; give finite images, normalised as in training")


def run_on_images(network: nn.Module, batch: Example) -> Any:
    """What the network gives; ScapError where it fails."""
    try:
        return run(network, batch)
    except (_Enough, ScapError):
        raise
    except Exception as error:  # the user's forward may raise anything
        count = len(first_tensor(batch))
        raise ScapError(f"the network does not run on {count} calibration images: {first_line(error)}") from error


@torch.no_grad()
def stream(network: nn.Module, images: Tensor, layers: Collection[str], receive: Receive, batch_size: int) -> None:
    """Run `network` (evaluation mode) batch by batch as far as `layers` need, and hand on what each reads and gives.

    `receive` must copy what it keeps: later operations in place may overwrite the tensors.
    """
    waiting: set[str] = set()
    start = 0

    def hook(name: str) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            receive(name, args[0] if args else kwargs["input"], output, start)
            waiting.discard(name)
            if not waiting:
                raise _Enough

        return read

    own = device_and_precision(network)
    handles = [network.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in layers]
    try:
        for start in range(0, len(images), batch_size):
            waiting.update(layers)
            with suppress(_Enough):
                run_on_images(network, fitted(images[start : start + batch_size], *own))
            if waiting:
                raise ScapError(f"layer {min(waiting)!r} {OTHER_WAY}")
    finally:
        for handle in handles:
            handle.remove()


class Moments:
    """Sum, count and second moments of samples (..., n, D): products in their own precision, added up in double precision.

    `centred`: means will be subtracted, so that products are in double precision where single would lose the variances.
    """

    def __init__(self, centred: bool = False) -> None:
        self.centred, self.count, self.single = centred, 0, False
        self.total: Tensor | None = None  # (..., D)
        self.products: Tensor | None = None  # (..., D, E)

    def add(self, left: Tensor, right: Tensor | None = None) -> None:
        """Add samples (..., n, D), and their products with others (..., n, E) or with themselves."""
        double = torch.promote_types(left.dtype, torch.float64)
        if self.centred and _cancels(left):
            left = left.to(double)
        self.single |= left.dtype != double
        products = (left.mT @ (left if right is None else right).conj()).to(double)
        self.count += left.shape[-2]
        self.total = self._plus(self.total, left.sum(-2, dtype=double))
        self.products = self._plus(self.products, products)

    @staticmethod
    def _plus(old: Tensor | None, new: Tensor) -> Tensor:
        return new if old is None else old.add_(new)

    def mean(self) -> Tensor:
        """(..., D) means."""
        assert self.total is not None
        return self.total / self.count

    def second(self, layer: str) -> Tensor:
        """(..., D, E) mean products, not centred; ScapError where they are not finite, or lost."""
        assert self.products is not None
        assert self.total is not None
        if not self.products.isfinite().all():
            raise ScapError(
                f"layer {layer!r} reads NaN, infinity or values too large for float32 on the calibration images: "
                "the network has diverged, or the images are not normalised as in training"
            )
        if self.products.abs().amax() < FAINT * self.count and self.single and self.total.any():
            raise ScapError(f"layer {layer!r} reads values too small for float32 on the calibration images: scale them")
        return self.products / self.count


def _cancels(samples: Tensor, looked_at: int = 1024) -> bool:
    """Whether means are so large beside the variances that the difference of second moments and squared means is lost."""
    few = samples[..., :: max(1, samples.shape[-2] // looked_at), :]
    mean = few.mean(-2, keepdim=True)
    return bool(mean.square().amax() > CANCELS * (few - mean).square().mean())


def chunks(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive indices in as few runs as a sum of `sizes` up to `limit` allows (one at least in each)."""
    runs: list[list[int]] = []
    filled = limit + 1
    for index, size in enumerate(sizes):
        if filled + size > limit:
            runs.append([])
            filled = 0
        runs[-1].append(index)
        filled += size
    return runs
