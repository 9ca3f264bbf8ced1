"""What all architectures share: convolutions by name, relative widths, initial weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm


def holds_weight(module: nn.Module) -> bool:
    """Whether a layer has a `weight`, computed or not: a class of one's own may keep its kernel under another name."""
    own = module._parameters.get("weight")
    return own is not None or "weight" in vars(module) or hasattr(type(module), "weight")


def conv_layers(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Ungrouped two-dimensional convolutions by module path, in the order of the network."""
    layers = weighted_layers(network)
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1}


def weighted_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Two-dimensional convolutions, grouped ones too, and linear layers by module path: what coupled groups are named by."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    return {name: layer for name, layer in layers.items() if holds_weight(layer)}


def width(layer: nn.Conv2d | nn.Linear) -> int:
    """Output channels of a layer, where its weight is computed or has another name, too."""
    weight = layer._parameters.get("weight")
    if weight is not None:
        return len(weight)
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def not_a_layer(network: nn.Module, layer: str, coupled: bool = False) -> str:
    """Why `layer` cannot be named by a plan for `network`, and which can, for messages."""
    module = dict(network.named_modules()).get(layer)
    kind = "" if module is None else f" (it is a {type(module).__name__})"
    if isinstance(module, _ConvNd):
        kind = f" (it is a {type(module).__name__} with groups={module.groups})"
    if isinstance(module, _ConvNd | nn.Linear) and not holds_weight(module):
        kind = f" (it is a {type(module).__name__} without a 'weight')"
    known = ", ".join(weighted_layers(network) if coupled else conv_layers(network))
    choice = f"choose from {known}" if known else "the network has none"
    return f"layer {layer!r} is no {'convolution or linear layer' if coupled else 'ungrouped convolution'}{kind}; {choice}"


def _sizes(module: nn.Module) -> dict[str, Any]:
    """What a module notes of its tensors' shapes (in_channels, num_features, ...), as these are now."""
    # A computed weight is left alone: a parametrisation may change its state when it is asked.
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if isinstance(module, _NormBase):
        held = dict(module.named_buffers(recurse=False)).get("running_mean") if weight is None else weight
        return {} if held is None else {"num_features": len(held)}
    if weight is None:
        return {}
    if isinstance(module, _ConvNd) and weight.ndim > 2:
        groups = module.groups
        if groups > 1 and not module.transposed:  # whole groups have gone
            groups = max(1, len(weight) * groups // module.out_channels)
        first, second = len(weight), weight.size(1) * groups
        out, given = (second, first) if module.transposed else (first, second)
        return {"groups": groups, "out_channels": out, "in_channels": given}
    if isinstance(module, nn.Linear) and weight.ndim == 2:
        return {"out_features": weight.size(0), "in_features": weight.size(1)}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": tuple(weight.shape)}
    return {"num_parameters": len(weight)} if isinstance(module, nn.PReLU) else {}


def plain_instance_norms(network: nn.Module) -> dict[str, _InstanceNorm]:
    """Instance norms that hold no tensor: nothing but their number of features tells how many channels they read."""
    norms = {name: module for name, module in network.named_modules() if isinstance(module, _InstanceNorm)}
    return {name: norm for name, norm in norms.items() if norm.weight is None and norm.running_mean is None}


@contextmanager
def noting_channels(network: nn.Module) -> Iterator[None]:
    """While it runs, plain instance norms note how many channels they read; they warn of other numbers else."""

    def note(norm: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs["input"]
        norm.num_features = given.size(given.dim() - norm._get_no_batch_dim())

    handles = [norm.register_forward_pre_hook(note, with_kwargs=True) for norm in plain_instance_norms(network).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_by_name(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones at all their names."""
    return dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))


def replace_tensors(network: nn.Module, tensors: dict[int, Tensor]) -> None:
    """Put other parameters and buffers in place of those with these `id`s, wherever modules hold them.

    What such modules note of their shapes follows, where it was theirs before.
    """
    for module in network.modules():
        noted = all(getattr(module, key, None) == value for key, value in _sizes(module).items())
        both = (module._parameters, module._buffers)
        held = [(own, key) for own in both for key, tensor in own.items() if id(tensor) in tensors]
        for own, key in held:
            own[key] = tensors[id(own[key])]  # type: ignore[assignment]  # a parameter for a parameter
        for key, value in _sizes(module).items() if held and noted else ():
            setattr(module, key, value)


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming initialisation (He et al. 2015, normal, fan-out) of every convolution, with zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
