"""Law 8 at run time: the cut network computes what the original computes with the removed channels zeroed where they are read.

The reference knows nothing of positions behind a convolution. It fills the removed output channels with NaN, which
spreads to whatever depends on them, and sets NaN to zero where a convolution or matrix product reads it: "removed" means
that nothing downstream sees anything of the channel. (Where a hand-written activation compares, NaN can get lost;
infinity and its negative are tried then. A mark that is lost can only make the comparison fail, never pass.) What the cut
network's products give must be equal, one by one; each is then replaced by the reference's, so that a difference is found
where it arises.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from scap.models.inputs import Example, outputs_of, run
from scap.models.layers import noting_channels
from scap.pruning.channels.coupling import member
from scap.pruning.channels.graph import Slices
from scap.pruning.channels.modules import Modules
from scap.pruning.copies import first_line, reseed, skeleton
from scap.pruning.cutting.slices import cut
from scap.pruning.plans import Plan

PRODUCTS = {"convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative to the largest value of a tensor
COARSE = 5e-2  # in half precision, for networks that run in nothing else
# fmt: off
CHANCE = {
    "rand", "rand_like", "randn", "randn_like", "normal", "normal_", "uniform", "uniform_", "bernoulli", "bernoulli_",
    "exponential", "exponential_", "poisson", "binomial", "log_normal", "log_normal_", "geometric", "geometric_",
    "cauchy", "cauchy_", "_standard_gamma",
}
# fmt: on
DROPOUTS = {F.rrelu, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


@dataclass
class Outcome:
    """What the check of a cut has found: the largest relative difference; where it fails, why and in which module."""

    difference: float = 0.0
    reason: str | None = None
    module: str = ""
    crashed: bool = False


@dataclass
class Product:
    """The result of a convolution or matrix product in the reference, without the removed channels."""

    name: str
    result: Tensor


class _Certain(TorchDispatchMode):
    """Random values are constants, as what is drawn would depend on the number of channels."""

    def _run(self, func: Any, args: tuple, kwargs: dict[str, Any] | None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.rpartition("::")[2] in CHANCE and isinstance(out, Tensor) and out.is_floating_point():
            out.fill_(0.5)
        return out


class _Reference(_Certain):
    """The original network with removed channels marked by a value that is not finite."""

    def __init__(self, network: nn.Module, plan: Plan, mark: float) -> None:
        super().__init__()
        self.modules, self.plan, self.mark = Modules(network), plan, mark
        self.products: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name == "native_layer_norm" and not args[0].isfinite().all():
            return _norm_of_what_stays(*args, mark=self.mark)
        if name not in PRODUCTS:
            return self._run(func, args, kwargs)
        out = func(*(self._unmarked(argument) for argument in args), **(kwargs or {}))
        weight = self.modules.weight(name, args)
        kept = None if weight is None else self.plan.get(member(weight))
        if kept is None:
            self.products.append(Product(name, out.clone()))
        else:
            dim = 1 if name == "convolution" else -1
            channels = out.movedim(dim, 0)
            self.products.append(Product(name, out.index_select(dim, torch.as_tensor(kept, device=out.device))))
            channels[np.delete(np.arange(len(channels)), kept)] = self.mark
        return out

    def _unmarked(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor) or not argument.is_floating_point() or self.modules.name(argument) is not None:
            return argument
        finite = argument.isfinite()
        return argument if finite.all() else torch.where(finite, argument, 0)


def _norm_of_what_stays(
    inputs: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float, *, mark: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer norm whose statistics are those of the entries without a mark; the others keep it."""
    stays, dims = inputs.isfinite(), list(range(inputs.ndim - len(shape), inputs.ndim))
    count = stays.sum(dims, keepdim=True).clamp(min=1)
    values = torch.where(stays, inputs, 0)
    mean = values.sum(dims, keepdim=True) / count
    spread = torch.where(stays, inputs - mean, 0)
    slope = (spread.square().sum(dims, keepdim=True) / count + eps).rsqrt()
    out = spread * slope * (1 if weight is None else weight) + (0 if bias is None else bias)
    return torch.where(stays, out, mark).contiguous(), mean, slope  # as the operation itself gives it


class _Replay(_Certain):
    """The cut network, each of its products compared with the reference's and replaced by it."""

    def __init__(self, network: nn.Module, products: list[Product], outcome: Outcome) -> None:
        super().__init__()
        self.modules, self.expected, self.outcome = Modules(network), iter(products), outcome

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = self._run(func, args, kwargs)
        name = func._schema.name.rpartition("::")[2]
        if name in PRODUCTS:
            expected = next(self.expected, None)
            if expected is None or expected.name != name:
                raise _Differs("runs other operations than the original")
            self._compare(expected.result, out)
            return expected.result.clone()
        return out

    def _compare(self, expected: Tensor, found: Tensor) -> None:
        if expected.shape != found.shape:
            raise _Differs(f"gives {tuple(found.shape)} in place of {tuple(expected.shape)} values")
        difference = relative_difference(expected, found)
        self.outcome.difference = max(self.outcome.difference, difference)
        if not difference <= TOLERANCE.get(expected.dtype, COARSE) and self.outcome.reason is None:
            self.outcome.module = self.modules.innermost
            self.outcome.reason = (
                f"cut, {self.modules.words()} computes something else than the original without those channels"
            )


class _Differs(Exception):
    """Raised through the user's forward where a comparison has no sense any more."""


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected; infinite where either holds NaN."""
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, found) else torch.inf
    largest = (expected - found).abs().max().item()
    return 0.0 if largest == 0 else largest / (expected.abs().max().item() or 1.0) if largest == largest else torch.inf


def law_8(network: nn.Module, slices: Slices, plan: Plan, example: Example, *, training: bool = False) -> Outcome:
    """Compare the cut of `network` with its reference on `example`; with `training`, in training mode without randomness."""
    first = _compared(network, slices, plan, example, training, torch.nan)
    if first.reason is None or first.crashed:
        return first
    others = (_compared(network, slices, plan, example, training, mark) for mark in (torch.inf, -torch.inf))
    return next((other for other in others if other.reason is None), first)


def _compared(network: nn.Module, slices: Slices, plan: Plan, example: Example, training: bool, mark: float) -> Outcome:
    whole, smaller = skeleton(network), skeleton(network)  # a forward may write marks into buffers
    if training:
        whole, smaller = in_training(whole), in_training(smaller)
    outcome, reference = Outcome(), _Reference(whole, plan, mark)
    with without_chance(training):
        with _told(outcome, reference.modules, "the original, with removed channels marked,"):
            expected = _run(whole, example, reference)
        if outcome.reason is not None:
            return outcome
        replay = _Replay(cut(smaller, slices), reference.products, outcome)
        with _told(outcome, replay.modules, "cut,"):
            found = _run(smaller, example, replay)
            _compare_outputs(expected, found, outcome)
    return outcome


def _run(network: nn.Module, example: Example, mode: _Reference | _Replay) -> dict[str, Tensor]:
    reseed()
    with mode.modules.watched(), noting_channels(network), mode:
        return dict(outputs_of(run(network, example)))


@contextmanager
def _told(outcome: Outcome, modules: Modules, who: str) -> Iterator[None]:
    """Turn what a forward raises into a reason."""
    try:
        yield
    except Exception as error:  # the user's forward may raise anything
        if outcome.reason is None:
            outcome.crashed, outcome.module = not isinstance(error, _Differs), modules.innermost
            verb = "fails: " if outcome.crashed else ""
            outcome.reason = f"{who} {modules.words()} {verb}{first_line(error)}"


def _compare_outputs(expected: dict[str, Tensor], found: dict[str, Tensor], outcome: Outcome) -> None:
    if outcome.reason is not None:
        return
    same = expected.keys() == found.keys() and all(expected[path].shape == found[path].shape for path in expected)
    if not same:
        outcome.reason = "cut, the network's outputs have other shapes"
        return
    for path, tensor in expected.items():
        difference = relative_difference(tensor, found[path])
        outcome.difference = max(outcome.difference, difference)
        if not difference <= TOLERANCE.get(tensor.dtype, COARSE):
            marked = tensor.is_floating_point() and not bool(tensor.isfinite().all())
            outcome.reason = "its channels reach the network's outputs" if marked else "cut, the network's outputs differ"


def in_training(network: nn.Module) -> nn.Module:
    """The network in training mode, with equal statistics and without chance, whatever branches run."""
    network.train()
    for module in network.modules():
        if isinstance(module, _NormBase | _DropoutNd | nn.RReLU):
            module.eval()
    return network


class _NoDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return args[0] if func in DROPOUTS and args else func(*args, **(kwargs or {}))


@contextmanager
def without_chance(training: bool) -> Iterator[None]:
    """No dropout in functions, where `training`."""
    if training:
        with _NoDropout():
            yield
    else:
        yield
