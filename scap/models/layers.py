"""What all architectures share: convolutions by name, relative widths, initial weights."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def conv_layers(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Ungrouped two-dimensional convolutions by module path, in the order of the network."""
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Conv2d) and module.groups == 1}


def weighted_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Two-dimensional convolutions, grouped ones too, and linear layers by module path: what coupled groups are named by."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def not_a_layer(network: nn.Module, layer: str, coupled: bool = False) -> str:
    """Why `layer` cannot be named by a plan for `network`, and which can, for messages."""
    module = dict(network.named_modules()).get(layer)
    kind = "" if module is None else f" (it is a {type(module).__name__})"
    if isinstance(module, _ConvNd):
        kind = f" (it is a {type(module).__name__} with groups={module.groups})"
    known = ", ".join(weighted_layers(network) if coupled else conv_layers(network))
    choice = f"choose from {known}" if known else "the network has none"
    return f"layer {layer!r} is no {'convolution or linear layer' if coupled else 'ungrouped convolution'}{kind}; {choice}"


def refresh_sizes(network: nn.Module) -> None:
    """Set the numbers of channels that modules note (in_channels, num_features, ...) to those of their weights."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(module, _ConvNd):
            if module.groups > 1 and not module.transposed:  # whole groups have gone
                module.groups = max(1, len(weight) * module.groups // module.out_channels)
            first, second = len(weight), weight.size(1) * module.groups
            module.out_channels, module.in_channels = (second, first) if module.transposed else (first, second)
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        elif isinstance(module, _NormBase):
            module.num_features = len(weight)
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(weight.shape)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(weight)


def replace_tensors(network: nn.Module, tensors: dict[int, Tensor]) -> None:
    """Put other parameters and buffers in place of those with these `id`s, wherever modules hold them."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in list(held.items()):
                if id(tensor) in tensors:
                    held[key] = tensors[id(tensor)]  # type: ignore[assignment]  # a parameter for a parameter


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming initialisation (He et al. 2015, normal, fan-out) of every convolution, with zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
