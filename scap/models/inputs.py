"""What goes into a network and comes out of it, however it is nested."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.data import Dataset

from scap.checks import check_dense
from scap.errors import ScapError

EXACT = 2**63 - 1  # the largest integer of a tensor
DEEPEST = 32  # levels of nested values that are looked into
Example = Any  # a Tensor, a tuple of positional or a dict of named arguments; a list is one argument


def run(network: nn.Module, example: Example) -> Any:
    """What `network` returns for a copy of `example`, as it may work in place on what it is given."""
    return call(network, mapped(torch.clone, example))


def call(network: nn.Module, example: Example) -> Any:
    """What `network` returns for `example`: a tuple holds positional arguments, a dict named ones, all else is one argument."""
    if isinstance(example, Mapping):
        return network(**example)
    return network(*example) if isinstance(example, tuple) else network(example)


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with every tensor in it replaced by `function` of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(function, item) for item in value))
    return type(value)(mapped(function, item) for item in value) if isinstance(value, tuple | list) else value


def tensors_of(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested values by its path: collections, data classes, plain objects."""
    return ((path, leaf) for path, leaf in _leaves(value, "", set()) if isinstance(leaf, Tensor))


def outputs_of(value: Any) -> Iterator[tuple[str, Tensor]]:
    """As tensors_of, for what a network returns: arrays and numbers are tensors, too."""
    for path, leaf in _leaves(value, "", set()):
        if isinstance(leaf, float):
            yield path, torch.tensor(leaf, dtype=torch.float32, device="cpu")
        elif isinstance(leaf, int):
            yield path, torch.tensor(max(-EXACT, min(EXACT, leaf)), device="cpu")
        elif isinstance(leaf, Iterator):
            raise ScapError(f"the network returns a {type(leaf).__name__}, which can be read only once; let it return a list")
        elif isinstance(leaf, Tensor | np.ndarray | np.generic) and (isinstance(leaf, Tensor) or leaf.dtype.kind in "fiub"):
            yield path, leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf, device="cpu")


def _leaves(value: Any, path: str, seen: set[int], depth: int = DEEPEST) -> Iterator[tuple[str, Any]]:
    """All that holds nothing further, by its path; plain objects, which may hold each other, are entered once."""
    items = _items(value)
    if items is None:
        yield path, value
    elif depth and id(value) not in seen:
        seen |= set() if isinstance(value, Collection) else {id(value)}
        for key, item in items:
            yield from _leaves(item, f"{path}[{key!r}]", seen, depth - 1)


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    """What a value holds, by key; None where it is a leaf."""
    if isinstance(value, Mapping):  # first: one whose attributes are its keys may raise anything where it is asked for another
        return list(value.items())
    if value is None or isinstance(value, str | bytes | range | Tensor | type | nn.Module) or hasattr(value, "__array__"):
        return None
    if isinstance(value, Collection):
        return list(enumerate(value))
    if callable(value):
        return None
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return list(held.items()) if held else None


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def gathered(images: Any) -> Example:
    """The images of a DataLoader in one tensor: its batches are tensors, or begin with one (images, labels)."""
    if isinstance(images, Dataset) and not isinstance(images, Iterable):
        raise ScapError(f"images is a {type(images).__name__}; give a loader of it: torch.utils.data.DataLoader(data, 64)")
    if isinstance(images, Tensor | Mapping | tuple | list) or not isinstance(images, Iterable) or hasattr(images, "__array__"):
        return images
    batches = _batches(images)
    if not batches or not all(isinstance(batch, Tensor) for batch in batches):
        kind = type(batches[0]).__name__ if batches else "nothing"
        raise ScapError(f"images: the loader gives {kind}; its batches must be tensors, or begin with one (images, labels)")
    for number, batch in enumerate(batches, 1):
        check_dense(batch, "images")
        if not batch.ndim:
            raise ScapError("images: the loader gives single numbers; its batches must be tensors (N, channels, H, W)")
        if batch.shape[1:] != batches[0].shape[1:] or batch.device != batches[0].device:
            found = " and ".join(f"{tuple(each.shape)} on {each.device}" for each in (batches[0], batch))
            raise ScapError(f"images: the batches 1 and {number} cannot be put together: {found}; give images of one size")
    return torch.cat(batches)


def _batches(images: Iterable[Any]) -> list[Any]:
    """What a loader gives, labels left out; ScapError where it fails, as on images of several sizes in one batch."""
    batches: list[Any] = []
    try:
        for batch in images:
            batches.append(batch[0] if isinstance(batch, tuple | list) and batch else batch)
    except Exception as error:  # the data set is the user's; of a worker process the last line says what it was
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        words = f"images: the loader fails at batch {len(batches) + 1}: {reason}"
        raise ScapError(f"{words}; all images must load, and be of one size") from error
    return batches


def first_tensor(example: Example) -> Tensor:
    """The first tensor of `example`: its length is the number of images. ScapError where there is none, or no dense one."""
    if isinstance(example, Iterable | Dataset) and not isinstance(example, Tensor | Mapping | tuple | list):
        raise ScapError(f"example is a {type(example).__name__}; give one batch of it, as the network is called with it")
    for _, tensor in tensors_of(example):
        if not tensor.is_meta:
            check_dense(tensor, "example")
        if tensor.ndim and not len(tensor):
            raise ScapError(f"example of shape {tuple(tensor.shape)}: it holds no image; give one at least")
        return tensor
    raise ScapError(f"example: {type(example).__name__} holds no tensor; give a tensor, or a tuple or dict of the arguments")


def device_and_precision(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Those of the first convolution or linear layer, which reads the images.

    Other parameters, such as a temperature of the whole network, may have another precision: they tell it only where there are
    no such layers, and buffers only where there are no parameters. CPU and torch's default without any.
    """
    layers = (module for module in network.modules() if isinstance(module, _ConvNd | nn.Linear))
    for part in (*layers, network):
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def fitted(example: Example, device: torch.device, dtype: torch.dtype) -> Example:
    """`example` on `device`, its floating-point tensors in `dtype`."""

    def placed(tensor: Tensor) -> Tensor:
        if tensor.is_meta and device.type != "meta":
            check_dense(tensor, "example")
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return mapped(placed, example)


def described(example: Example) -> str:
    """Shapes (and types that are no floating-point ones) of `example`, for messages."""
    found = list(tensors_of(example))
    words = [f"{tuple(t.shape)}" + ("" if t.is_floating_point() else f" of {t.dtype}") for _, t in found]
    listed = " in a list, which is one argument (give a tensor; batches as a DataLoader)" if isinstance(example, list) else ""
    return (f"of shape {words[0]}" if len(words) == 1 else f"of shapes {', '.join(words)}") + listed
