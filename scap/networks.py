"""Network architectures for 32x32 images, with layers named as in the literature."""

import inspect
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from scap.errors import ScapError
from scap.layers import VGG16_BLOCKS

RESNET_STAGES = (16, 32, 64)


def scaled(channels: int, width: float) -> int:
    """Number of channels at relative `width`, rounded, at least 1."""
    if width <= 0:
        raise ScapError(f"width: {width} is not above 0; give a factor such as 1 or 0.25")
    return max(1, round(channels * width))


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming initialisation (He et al. 2015, normal, fan-out) of every convolution, with zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def vgg16(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """VGG16 with batch normalisation and one linear head: (N, in_channels, 32, 32) -> logits (N, classes).

    13 convolutions conv1_1 ... conv5_3, with biases, and `classifier`; 14,728,266 parameters by default
    (Simonyan and Zisserman 2015, in the variant for CIFAR-10 that the pruning literature uses).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for block, widths in enumerate(VGG16_BLOCKS, 1):
        for position, full_width in enumerate(widths, 1):
            name, outputs = f"{block}_{position}", scaled(full_width, width)
            layers[f"conv{name}"] = nn.Conv2d(channels, outputs, 3, padding=1)
            layers[f"bn{name}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{name}"] = nn.ReLU(inplace=True)
            channels = outputs
        # The last block's 2x2 maps are averaged, which also admits images of other sizes.
        layers[f"pool{block}"] = nn.MaxPool2d(2) if block < len(VGG16_BLOCKS) else nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, classes)
    network = nn.Sequential(layers)
    initialise_convolutions(network)
    return network


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(channels)))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu1(self.bn1(self.conv1(inputs)))
        return self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


def resnet20(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """ResNet-20 for CIFAR (He et al. 2015, section 4.2): (N, in_channels, 32, 32) -> logits (N, classes).

    Shortcuts that change the shape are 1x1 convolutions (their option B), since a dependency graph cannot
    follow the padded channels of option A; 272,474 parameters by default.
    """
    channels = scaled(RESNET_STAGES[0], width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu1=nn.ReLU(inplace=True),
    )
    for stage, full_width in enumerate(RESNET_STAGES, 1):
        for block in range(1, 4):
            outputs, stride = scaled(full_width, width), 2 if stage > 1 and block == 1 else 1
            layers[f"block{stage}_{block}"] = ResidualBlock(channels, outputs, stride)
            channels = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels, classes)
    network = nn.Sequential(layers)
    initialise_convolutions(network)
    return network


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"vgg16": vgg16, "resnet20": resnet20}


def build_network(architecture: str, **arguments: float) -> nn.Module:
    """The network named `architecture` in ARCHITECTURES, freshly initialised from the global random state.

    Raises ScapError for an unknown architecture or argument.
    """
    if architecture not in ARCHITECTURES:
        raise ScapError(f"architecture: {architecture!r} is unknown; choose from {', '.join(ARCHITECTURES)}")
    build = ARCHITECTURES[architecture]
    unknown = arguments.keys() - inspect.signature(build).parameters.keys()
    if unknown:
        known = ", ".join(inspect.signature(build).parameters)
        raise ScapError(f"architecture {architecture}: unknown argument {min(unknown)!r}; it takes {known}")
    return build(**arguments)
