"""How long a network takes on this machine, alone or against another one in alternation."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scap.checks import check_number
from scap.errors import ScapError
from scap.models.inputs import Example, call, device_and_precision, first_tensor, fitted, mapped
from scap.pruning.copies import copied, running, same_randomness

Runnable = nn.Module | Callable[..., Any]


@dataclass(frozen=True)
class Latency:
    """What measure_latency found; times in seconds of one call, which is one batch.

    Attributes:
        median: Of the calls, seconds.
        spread: Between their quartiles, seconds.
        images: How many a call takes.
        threads: Of torch on the CPU.
        device: Where the network ran.
        repeats: How many calls were counted.
        other: Median of the other network, seconds; None without one.
        ratio: Median over pairs of calls of the time of `network` over that of `other`: below 1 it is faster.
        ratio_spread: Between the quartiles of these ratios.
    """

    median: float
    spread: float
    images: int
    threads: int
    device: str
    repeats: int
    other: float | None = None
    ratio: float | None = None
    ratio_spread: float | None = None

    def __str__(self) -> str:
        text = f"{1e3 * self.median:.3g} ms ± {1e3 * self.spread / 2:.2g} for {self.images} images on {self.device}"
        against = f", {self.ratio:.3f} of the other's" if self.ratio is not None else ""
        return f"{text}, {self.threads} threads{against}"


def measure_latency(
    network: Runnable,
    example: Example,
    *,
    other: Runnable | None = None,
    threads: int | None = None,
    warmup: int = 3,
    repeats: int = 30,
) -> Latency:
    """The time of a forward pass, in evaluation mode and without gradients.

    Against `other` the two are called in turns, so that a drift of the machine meets both alike: the ratio holds where the
    times do not.

    Args:
        network: Any module, compiled or not, or a function of the example. Of a module a copy runs, made beforehand, and
            the module is not altered; a function is called as it is.
        example: An input: a tensor (N, channels, H, W), or a tuple or dict of all arguments. N images are one call.
        other: What to compare with, such as the network before pruning.
        threads: Of torch on the CPU while it is measured; as they are by default.
        warmup: Calls that are not counted.
        repeats: Calls that are.

    Returns:
        `median` and `spread` (between the quartiles) in seconds, `images`, `threads`, `device`, `repeats`; with `other`
        its median `other`, and `ratio` and `ratio_spread` of paired calls. A ratio below 1: `network` is faster.

    Raises:
        ScapError: Where a network does not run on the example or cannot be copied, and for `threads`, `warmup` or `repeats`
            that are no whole numbers or too small.

    Example:
        >>> import scap, torch
        >>> wide, narrow = torch.nn.Conv2d(3, 256, 3), torch.nn.Conv2d(3, 16, 3)
        >>> measured = scap.measure_latency(narrow, torch.zeros(1, 3, 32, 32), other=wide, threads=1)
        >>> measured.ratio < 1
        True
    """
    for name, value, low in (("warmup", warmup, 0), ("repeats", repeats, 1)):
        check_number(value, name, low, whole=True)
    if threads is not None:
        check_number(threads, "threads", 1, whole=True)
    images = len(first_tensor(example)) if first_tensor(example).ndim else 1
    runnables = {"network": _own("network", network)} | ({} if other is None else {"other": _own("other", other)})
    device = _device(list(runnables.values()), example)
    with _quiet(threads):
        used = torch.get_num_threads()
        calls = [_call(name, each, example, device) for name, each in runnables.items()]
        times = [[call() for call in calls] for _ in range(warmup + repeats)][warmup:]
    own, *others = zip(*times, strict=True)
    found = Latency(statistics.median(own), spread(own), images, used, str(device), repeats)
    return found if other is None else _against(found, own, others[0])


def _against(found: Latency, own: tuple[float, ...], others: tuple[float, ...]) -> Latency:
    ratios = [time / against for time, against in zip(own, others, strict=True)]
    values = vars(found) | {"other": statistics.median(others), "ratio": statistics.median(ratios)}
    return Latency(**values | {"ratio_spread": spread(ratios)})


def spread(values: Any) -> float:
    """Between the quartiles; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4)
    return third - first


def _own(name: str, runnable: Runnable) -> Runnable:
    """A module's copy in evaluation mode, as fast as the module; a function as it is."""
    if not callable(runnable):
        raise ScapError(f"{name}: is a {type(runnable).__name__}; give a module, or a function of the example")
    if not isinstance(runnable, nn.Module):
        return runnable
    remedy = f"or pass a function that calls it, as lambda images: {name}(images), to measure it as it is"
    if any(getattr(module, "_compiled_call_impl", None) for module in runnable.modules()):  # which a copy would not be
        raise ScapError(f"{name}: it is compiled in place, by its method compile; pass torch.compile({name}), {remedy}")
    try:
        own = copied(runnable)
    except ScapError as error:
        raise ScapError(f"{name}: {str(error).removeprefix('network: ')}; {remedy}") from error
    for module in own.modules():
        if getattr(module, "training", False):  # frozen TorchScript has no mode
            module.training = False  # not by eval(), which modules of torch.export do not have
    return own


def _device(runnables: list[Runnable], example: Example) -> torch.device:
    """Of the first network, or of the example where there are functions only."""
    for each in runnables:
        if isinstance(each, nn.Module):
            return device_and_precision(each)[0]
    return first_tensor(example).device


def _call(name: str, runnable: Runnable, example: Example, device: torch.device) -> Callable[[], float]:
    """A function that runs it once and gives the seconds; ScapError, which names the argument, where it does not run."""
    whole = example
    if isinstance(runnable, nn.Module):
        example = fitted(example, *device_and_precision(runnable))

    def timed() -> float:
        given = mapped(torch.clone, example)  # the network may work in place on it
        with running(whole, "the network" if name == "network" else name):
            _wait(device)
            start = time.perf_counter()
            call(runnable, given)  # type: ignore[arg-type]  # whatever can be called
            _wait(device)
            return time.perf_counter() - start

    timed()
    return timed


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def _quiet(threads: int | None) -> Iterator[None]:
    """Without gradients and garbage collection, with so many threads; the random streams are put back.

    Not in inference mode: a tensor that a function keeps of it could not be trained with.
    """
    before, collects = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads or before)
    gc.disable()
    try:
        with same_randomness(), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
        if collects:
            gc.enable()
