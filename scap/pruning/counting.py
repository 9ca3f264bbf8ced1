"""Multiply-accumulate operations and parameters of a network, by torch.utils.flop_counter.

Convention: 1 MAC = 1 FLOP, as in tables of the pruning literature; torch counts 2 FLOPs for a MAC. Everything that
multiplies matrices or vectors counts: convolutions, linear and bilinear layers, attention, other products of this kind.
Biases, batch norm, activations, pooling, distances and products element by element do not, nor do the kernels of other
packages.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from scap.errors import ScapError
from scap.models.inputs import Example, device_and_precision, first_tensor, fitted, run, tensors_of
from scap.models.modes import evaluating
from scap.pruning.channels.modules import Modules
from scap.pruning.copies import check_network, copied, patched, running, undisturbed

# Products that torch's counter leaves out, and which argument is their first factor; the second one follows it.
PRODUCTS = {
    **{"mv": 0, "dot": 0, "vdot": 0, "addmv": 1, "addbmm": 1, "addmm_": 1, "addmv_": 1, "addbmm_": 1, "baddbmm_": 1},
    **{"_addmm_activation": 1, "_sparse_addmm": 1, "_int_mm": 0, "_grouped_mm": 0},
}


def count_operations(network: nn.Module, example: Example) -> dict[str, int]:
    """The size of a network: multiply-accumulate operations for one image, and parameters.

    Args:
        network: Any module; it is not altered.
        example: An input: a tensor (N, channels, H, W), or a tuple or dict of all arguments; one image (channels, H, W), or a
            list of such, where the network takes them.

    Returns:
        `macs` (1 MAC = 1 FLOP) and `params` (all, batch norms' and frozen ones included), exact. N does not change them:
        the network runs on the first image alone. Where it cannot, they are what it does for all N, divided by N.

    Raises:
        ScapError: Where the network does not run on the example.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> scap.count_operations(network, torch.zeros(1, 3, 8, 8))
        {'macs': 12384, 'params': 516}
    """
    check_network(network)
    params = sum(parameter.numel() for parameter in network.parameters())
    image, images = _one_image(network, example)
    return {"macs": _macs(network, image) // images, "params": params}


def layer_macs(network: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-accumulate operations for one image of each convolution and linear layer.

    A layer used several times counts each time, an unused one 0. Matrix products outside of these layers (attention) are
    in `count_operations` alone.

    Args:
        network: Any module; it is not altered.
        example: As in `count_operations`.

    Returns:
        Layer (module path) -> MACs, in the order of the network.

    Raises:
        ScapError: Where the network does not run on the example.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> scap.layer_macs(network, torch.zeros(1, 3, 8, 8))
        {'0': 7776, '2': 4608}
    """
    check_network(network)
    image, images = _one_image(network, example)
    network = evaluating(copied(network))
    counter = _counter()
    with _by_layer(network, counter) as flops:
        _run_seen(network, image, counter)
    return {name: each // 2 // images for name, each in flops.items()}


@contextmanager
def _by_layer(network: nn.Module, counter: FlopCounterMode) -> Iterator[dict[str, int]]:
    """Fill in what is counted while each layer runs, whoever calls it: the counter files a shared one under one parent."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _ConvNd | nn.Linear)}
    flops = dict.fromkeys(layers, 0)

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            flops[name] -= counter.get_total_flops()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            flops[name] += counter.get_total_flops()

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(enter(name)).remove)
            stack.callback(layer.register_forward_hook(leave(name), always_call=True).remove)
        yield flops


def weight_macs(network: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-accumulate operations for one image of each parameter that a convolution or matrix product multiplies by."""
    check_network(network)
    image, images = _one_image(network, example)
    network = evaluating(copied(network))
    counter = _ByWeight(network)
    _run_seen(network, image, counter)
    return {name: macs // images for name, macs in counter.macs.items()}


class _ByWeight(TorchDispatchMode):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.modules, self.macs = Modules(network), dict[str, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = self.modules.weight(func._schema.name.rpartition("::")[2], args)
        if name is not None:
            flops = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.macs[name] = self.macs.get(name, 0) + flops // 2
        return out


def _counter() -> FlopCounterMode:
    """torch's counter, with the operations that it leaves out."""
    others = {"addr": _outer, "addr_": _outer, "_trilinear": _bilinear, "conv_tbc": _convolution}
    formulas = {name: _product(first) for name, first in PRODUCTS.items()} | others
    # Another version of torch may lack those that begin with "_".
    known = {getattr(torch.ops.aten, name, None): formula for name, formula in formulas.items()}
    return FlopCounterMode(display=False, custom_mapping=known)


def _product(first: int) -> Callable[..., int]:
    """FLOPs of products of matrices and vectors: each value on the left meets each column on the right."""

    def flops(*shapes: Any, **more: Any) -> int:
        left, right = shapes[first : first + 2]
        return 2 * prod(left) * (right[-1] if len(right) > 1 else 1)

    return flops


def _outer(added: Any, left: Any, right: Any, **more: Any) -> int:
    return 2 * prod(left) * prod(right)


def _bilinear(left: Any, weight: Any, *rest: Any, **more: Any) -> int:
    """FLOPs of (N, I) times the weight (O, I, J), and of what comes out of it (N, O, J) times (N, J)."""
    outputs, _, others = weight
    return 2 * left[0] * (prod(weight) + outputs * others)


def _convolution(images: Any, weight: Any, *rest: Any, out_shape: Any, **more: Any) -> int:
    """FLOPs of conv_tbc: the weight is (kernel, inputs, outputs)."""
    return 2 * prod(out_shape) * prod(weight[:2])


def _one_image(network: nn.Module, example: Example) -> tuple[Example, int]:
    """What to run to count for one image, and how many images it holds: the first one, or all where the network needs all.

    Which arguments hold images, and whether their first dimension is N, is told by running the network on the first image:
    all operations must then be N times those of one. ScapError where it does not run on the example.
    """
    first = first_tensor(example)
    batches = _batches(network, example)
    if not batches:  # no dimension, or in objects that cannot be cut
        return example, len(first) if first.ndim else 1
    main = batches[0]
    if len(main) == 1 and (main is first or len(batches) == 1):
        return example, 1
    whole, likely = _macs(network, example), None
    for images, image in _first_images(example, batches):
        macs = _tried(network, image)
        if macs is not None and macs * images == whole:
            return image, 1
        if macs is not None and images == len(main):  # some operations are done once for all images
            likely = image if likely is None else likely
    if likely is not None:
        return likely, 1
    single = isinstance(main, Tensor) and _is_single(network, main, otherwise=(1, 3))  # of no image a part runs alone
    return example, 1 if single else len(main)


def _tried(network: nn.Module, example: Example) -> int | None:
    """MACs for all images of the example; None where the network does not run on it."""
    try:
        return _macs(network, example)
    except ScapError:
        return None


def _batches(network: nn.Module, example: Example) -> list[Any]:
    """What may hold N images: tensors of one dimension or more, and lists of single images. Those of most dimensions first."""
    if isinstance(example, Tensor):
        return [example] if example.ndim and len(example) else []
    if isinstance(example, list) and example and all(_is_single(network, item) for item in example):
        return [example]
    items = example.values() if isinstance(example, Mapping) else example if isinstance(example, tuple | list) else ()
    return sorted((batch for item in items for batch in _batches(network, item)), key=_dimensions, reverse=True)


def _dimensions(batch: Any) -> int:
    return batch.ndim if isinstance(batch, Tensor) else 1 + first_tensor(batch).ndim


def _is_single(network: nn.Module, value: Any, otherwise: Collection[int] = ()) -> bool:
    """Whether it is, or begins with, a tensor of as many dimensions as the convolutions read without N, if there are some."""
    tensor = next((tensor for _, tensor in tensors_of(value)), None)
    known = {1 + len(module.kernel_size) for module in network.modules() if isinstance(module, _ConvNd)}
    return tensor is not None and tensor.ndim in (known or otherwise)


def _first_images(example: Example, batches: list[Any]) -> Iterator[tuple[int, Example]]:
    """N, and the example with the first image alone: in all of N, or in those of most dimensions, as others may be sizes."""
    for images in dict.fromkeys(len(batch) for batch in batches if len(batch) > 1):
        alike = [batch for batch in batches if len(batch) == images]
        main = [batch for batch in alike if _dimensions(batch) == _dimensions(alike[0])]
        for each in [alike] if len(alike) == len(main) else [alike, main]:
            yield images, _replaced(example, each, lambda batch: batch[:1])


def _replaced(value: Any, batches: list[Any], function: Callable[[Any], Any]) -> Any:
    """`value` with `function` of each of these batches in its place."""
    if any(value is batch for batch in batches):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, batches, function) for key, item in value.items()}
    if not isinstance(value, tuple | list):
        return value
    items = [_replaced(item, batches, function) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _macs(network: nn.Module, example: Example) -> int:
    """MACs for all images of the example."""
    network = evaluating(copied(network))
    counter = _counter()
    _run_seen(network, example, counter)
    return counter.get_total_flops() // 2


def _run_seen(network: nn.Module, example: Example, counter: Any) -> None:
    """Run the network under a counter."""
    with running(example), _every_product_seen(network), counter:
        run(network, fitted(example, *device_and_precision(network)))


@contextmanager
def _every_product_seen(network: nn.Module) -> Iterator[None]:
    """Without gradients and without fused kernels that the counter has no formula for (attention, recurrent layers)."""
    with ExitStack() as stack:
        stack.enter_context(undisturbed(network))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # attention one product after the other
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            for backend in (torch.backends.mkldnn, torch.backends.cudnn):  # their flags() would set precisions, too, and warn
                stack.enter_context(patched(backend, "enabled", False))
        yield
