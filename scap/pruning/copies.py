"""Copies of a network to try things on, and the caller's world left as it was."""

import copy
import dis
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from scap.errors import ScapError
from scap.models.inputs import Example, described, device_and_precision, first_tensor, fitted, mapped, run
from scap.models.modes import evaluating

CHEAP_PARAMETERS, CHEAP_INPUTS = 30_000_000, 1_000_000  # up to here float64 costs little memory and time
DRAWN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # those that random values can be drawn in
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
ROUNDING = (
    "cudnn.conv",
    "cudnn.rnn",
    "cuda.matmul",
    "mkldnn.conv",
    "mkldnn.rnn",
    "mkldnn.matmul",
)  # may drop digits
STATISTICS = {"weight": (0.5, 1.5), "running_var": (0.5, 1.5), "bias": (-0.5, 0.5), "running_mean": (-0.5, 0.5)}


def check_network(network: nn.Module) -> None:
    """Raise ScapError for what stands in place of a network: wrappers, compiled networks, things of other types."""
    if isinstance(network, WRAPPERS):
        raise ScapError(f"network: it is wrapped in {type(network).__name__}; pass `network.module`")
    if hasattr(network, "_orig_mod"):
        raise ScapError("network: it is compiled by torch.compile; pass `network._orig_mod`, and compile what comes back")
    if isinstance(network, torch.jit.ScriptModule):
        raise ScapError("network: it is compiled by TorchScript; pass the nn.Module that it was made from")
    if not isinstance(network, nn.Module):
        raise ScapError(f"network: is a {type(network).__name__}, not a torch.nn.Module")
    for name, module in network.named_modules():
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise ScapError(
                f"network: {name!r} ({type(module).__name__}) has no weights yet; run the network on an example first"
            )


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """No gradients, inference mode, autocast, TF32 nor attention's fused path; the random streams are put back afterwards.

    Nor inference mode or autocast where the network's own forward switches them on.
    """
    kinds = {"cpu", *(tensor.device.type for tensor in network.parameters())} - {"meta"}
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(same_randomness())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_no_modes_inside())
        stack.enter_context(_all_digits())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        reseed()
        yield


def reseed() -> None:
    """From here on the same random values each time: PyTorch's, Python's and NumPy's, as a network may draw any of them."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@contextmanager
def _no_modes_inside() -> Iterator[None]:
    """Autocast and inference mode that the network's own forward enters do nothing: layers run with their own weights.

    What was before is put back where the forward leaves them.
    """
    enter_autocast, enter_inference = torch.autocast.__enter__, torch.inference_mode.__enter__

    def without_autocast(context: torch.autocast) -> Any:
        result = enter_autocast(context)
        torch.set_autocast_enabled(context.device, False)
        return result

    def without_inference(context: torch.inference_mode) -> Any:
        with patched(context, "mode", False):
            result = enter_inference(context)
        torch.set_grad_enabled(False)
        return result

    with (
        patched(torch.autocast, "__enter__", without_autocast),
        patched(torch.inference_mode, "__enter__", without_inference),
    ):
        yield


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute of `owner` for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def same_randomness() -> Iterator[None]:
    """The random streams of PyTorch, Python and NumPy are put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _all_digits() -> Iterator[None]:
    """Products of float32 in all digits, whatever the caller has set. PyTorch has old and new switches; both are put back."""
    backends = [attrgetter(name)(torch.backends) for name in ROUNDING]
    new, old = [backend.fp32_precision for backend in backends], dict[str, Any]()
    with suppress(RuntimeError):  # old switches cannot be read where they contradict new ones
        old["convolutions"] = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        old["products"] = torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        if "convolutions" in old:
            torch.backends.cudnn.allow_tf32 = old["convolutions"]
        if "products" in old:
            torch.set_float32_matmul_precision(old["products"])
        for backend, value in zip(backends, new, strict=True):
            backend.fp32_precision = value


def copied(network: nn.Module) -> nn.Module:
    """A copy of its own; ScapError names what cannot be copied and the remedy."""
    try:
        with torch.inference_mode(False):
            copy_ = copy.deepcopy(network, _empty(network))
    except Exception as error:  # whatever a module holds may fail to be copied
        raise ScapError(f"network: it cannot be copied: {_uncopied(network) or first_line(error)}") from error
    if words := _shared(network, copy_):
        raise ScapError(f"network: it cannot be copied: {words}")
    return copy_


def _shared(network: nn.Module, copy_: nn.Module) -> str | None:
    """What of a copy is the original's own."""
    own = {id(part) for part in (*network.modules(), *network.parameters(), *network.buffers())}
    named = (*copy_.named_modules(), *copy_.named_parameters(), *copy_.named_buffers())
    for name, part in named:
        if id(part) in own:
            return f"a copy of it holds the same {name or 'network'!r}; take out the __deepcopy__ that gives the original"
    for name, module in network.named_modules():
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        for what, function in (("the forward", vars(module).get("forward")), *(("a hook", hook) for hook in hooks)):
            if isinstance(function, FunctionType) and any(id(value) in own for value in _known_to(function)):
                return f"{what} of {name or 'the network'!r} is a function that calls the original; write it as a method"
    return None


def _known_to(function: FunctionType) -> Iterator[Any]:
    """The values of outer variables that a function names."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not set yet
            yield cell.cell_contents
    read = {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
    yield from (function.__globals__[name] for name in read if name in function.__globals__)
    yield from function.__defaults__ or ()


def in_precision(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The network itself, its real tensors in `dtype` and its complex ones, which `to` would make real, as precise.

    None: all as they are.
    """
    if dtype is None:
        return network
    pair = dtype.to_complex()
    return network._apply(lambda tensor: tensor.to(pair if tensor.is_complex() else dtype) if _has_digits(tensor) else tensor)


def _has_digits(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def skeleton(network: nn.Module) -> nn.Module:
    """A copy of the modules around the same parameters, with buffers of its own."""
    return copy.deepcopy(network, _empty(network) | {id(parameter): parameter for parameter in network.parameters()})


def _empty(network: nn.Module) -> dict[int, Any]:
    """The copies of all empty dictionaries, for deepcopy: a module holds a dozen for its hooks, which take most of its time."""
    values = (value for module in network.modules() for value in vars(module).values())
    return {id(value): type(value)() for value in values if type(value) in (dict, OrderedDict) and not value}


def _uncopied(network: nn.Module) -> str | None:
    for name, module in network.named_modules():
        if words := remedy(name, module):
            return words
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                return f"{name or 'it'!r} stores the tensor {key!r} of a forward pass; set it to None first"
            if key != "_modules":  # these have their turn
                try:
                    copy.deepcopy(value)
                except Exception as error:  # whatever it holds
                    return f"{name or 'it'!r} holds {key!r} ({first_line(error)}); set it to None first"
    return None


def remedy(name: str, module: nn.Module) -> str | None:
    """How to give `module` a plain weight again, where something computes it."""
    if parametrize.is_parametrized(module):
        return f"{name!r} is parametrised; call torch.nn.utils.parametrize.remove_parametrizations on it first"
    for hook in module._forward_pre_hooks.values():
        kind = type(hook)
        if kind.__module__ == "torch.nn.utils.prune":
            return f"{name!r} holds a mask; call torch.nn.utils.prune.remove on it first"
        if kind.__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
            call = "remove_" + kind.__module__.rpartition(".")[2]
            return f"the weight of {name!r} is computed before each pass; call torch.nn.utils.{call} on it first"
    return None


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def running(example: Example, network: str = "the network") -> Iterator[None]:
    """Whatever a forward raises becomes a ScapError that says on what `example` the `network` does not run."""
    try:
        yield
    except ScapError:
        raise
    except Exception as error:
        raise ScapError(f"{network} does not run on an example {described(example)}: {first_line(error)}") from error


class Rehearsal:
    """A copy of a network with random weights and non-trivial batch norms, on a random example: to try surgery on.

    In float64 where that is cheap. What surgery may do depends on the network's structure alone, not on its weights.
    """

    def __init__(self, network: nn.Module, example: Example) -> None:
        _check_followed(network)
        device, own = device_and_precision(network)
        if device.type == "meta":
            raise ScapError("network: it is on the device meta, which keeps no values; make it on another one")
        for number, dtype in enumerate(_precisions(network, example, device)):
            self.network = evaluating(copied(network)).requires_grad_(False)
            self._randomise()
            in_precision(self.network, dtype)
            self.dtype = dtype
            for self.example in _examples(fitted(example, device, dtype or own)):
                if self._runs():
                    return
            if not number:
                _try(network, fitted(example, device, own), example)
        raise ScapError("the network runs with its own weights only; SCAP cannot try a removal on it")

    def _runs(self) -> bool:
        try:
            run(self.network, self.example)
        except Exception:  # the user's forward may raise anything
            return False
        return True

    def _randomise(self) -> None:
        for parameter in self.network.parameters():
            if parameter.is_floating_point():
                _redraw(parameter)
        for name, buffer in self.network.named_buffers():
            bounds = STATISTICS.get(name.rpartition(".")[2])
            if bounds and buffer.is_floating_point() and buffer.ndim == 1:
                buffer.uniform_(*bounds)


def _check_followed(network: nn.Module) -> None:
    """ScapError for parts whose operations cannot be seen, nor their weights replaced."""
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ScapError(
                f"network: {name!r} is compiled by TorchScript; put the nn.Module that it was made from in its place"
            )


def _try(network: nn.Module, fitting: Example, example: Example) -> None:
    """ScapError where the network itself does not run on its example."""
    with running(example):
        run(evaluating(copied(network)), fitting)


def _precisions(network: nn.Module, example: Example, device: torch.device) -> list[torch.dtype | None]:
    """Those to try, the most exact one that is cheap first; None: each parameter in its own."""
    size = sum(parameter.numel() for parameter in network.parameters())
    cheap = size <= CHEAP_PARAMETERS and first_tensor(example).numel() <= CHEAP_INPUTS and device.type != "mps"
    return [*([torch.float64] if cheap else []), torch.float32, None]


def _examples(example: Example) -> Iterator[Example]:
    """Of a batch its first image, where that is enough; random values first."""
    single = [example[:1]] if isinstance(example, Tensor) and example.ndim and len(example) > 1 else []
    for given in (*single, example):
        yield mapped(_noise, given)
        yield given


def _redraw(parameter: Tensor) -> None:
    if not parameter.numel() or parameter.dtype not in DRAWN:
        return
    if parameter.ndim > 1:
        bound = (3 / parameter[0].numel()) ** 0.5  # a variance of 1 / inputs
        parameter.uniform_(-bound, bound)
    else:
        parameter.uniform_(0.5, 1.5)


def _noise(tensor: Tensor) -> Tensor:
    return torch.randn_like(tensor) if tensor.is_floating_point() else tensor
