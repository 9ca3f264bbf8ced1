"""What goes into a network and comes out of it, however it is nested."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scap.errors import ScapError

Example = Any  # a Tensor, a tuple of positional or a dict of named arguments; a list is one argument


def run(network: nn.Module, example: Example) -> Any:
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


def tensors_of(value: Any, path: str = "", depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested outputs by its path: tuples, lists, dicts, data classes, plain objects."""
    if isinstance(value, Tensor):
        yield path, value
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple | list | set | frozenset):
        items = list(enumerate(value))
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        items = list(vars(value).items()) if not isinstance(value, type | nn.Module) and not callable(value) else []
    for key, item in items if depth else ():
        yield from tensors_of(item, f"{path}[{key!r}]", depth - 1)


def gathered(images: Any) -> Example:
    """The images of a DataLoader in one tensor: its batches are tensors, or begin with one (images, labels)."""
    if isinstance(images, Tensor | Mapping | tuple | list) or not isinstance(images, Iterable) or hasattr(images, "__array__"):
        return images
    batches = [batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in images]
    if not batches or not all(isinstance(batch, Tensor) for batch in batches):
        kind = type(batches[0]).__name__ if batches else "nothing"
        raise ScapError(f"images: the loader gives {kind}; its batches must be tensors, or begin with one (images, labels)")
    return torch.cat(batches)


def first_tensor(example: Example) -> Tensor:
    """The first tensor of `example`: its length is the number of images. Raises ScapError where there is none."""
    for _, tensor in tensors_of(example):
        if tensor.ndim and not len(tensor):
            raise ScapError(f"example of shape {tuple(tensor.shape)}: it holds no image; give one at least")
        return tensor
    raise ScapError(f"example: {type(example).__name__} holds no tensor; give a tensor, or a tuple or dict of the arguments")


def device_and_precision(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Those of the first floating-point parameter or buffer; CPU and torch's default where there is none."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def fitted(example: Example, device: torch.device, dtype: torch.dtype) -> Example:
    """`example` on `device`, its floating-point tensors in `dtype`."""
    return mapped(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype), example)


def described(example: Example) -> str:
    """Shapes (and types that are no floating-point ones) of `example`, for messages."""
    found = list(tensors_of(example))
    words = [f"{tuple(t.shape)}" + ("" if t.is_floating_point() else f" of {t.dtype}") for _, t in found]
    return f"of shape {words[0]}" if len(words) == 1 else f"of shapes {', '.join(words)}"
