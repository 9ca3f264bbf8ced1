"""What all architectures share: convolutions by name, relative widths, initial weights."""

from torch import nn


def conv_layers(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Ungrouped two-dimensional convolutions by module path, in the order of the network."""
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Conv2d) and module.groups == 1}


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming initialisation (He et al. 2015, normal, fan-out) of every convolution, with zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
