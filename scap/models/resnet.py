"""Residual networks for 32x32 images, with layers named as in their published checkpoints."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from scap.models.layers import initialise_convolutions
from scap.models.names import RESNET_BLOCKS, RESNET_STAGES, scaled


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, with channels of zeros before and behind: a shortcut without weights.

    (N, in_channels, H, W) -> (N, channels, H / stride, W / stride), rounded up (He et al. 2015, option A).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.behind = channels - in_channels - self.before

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs[:, :, :: self.stride, :: self.stride]
        return functional.pad(pixels, (0, 0, 0, 0, self.before, self.behind))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else PaddedShortcut(in_channels, channels, stride)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu1(self.bn1(self.conv1(inputs)))
        return self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


def _resnet(blocks: int, classes: int, in_channels: int, width: float) -> nn.Sequential:
    """Three stages of `blocks` residual blocks each, 16, 32 and 64 channels wide: 6 * blocks + 2 layers with weights."""
    channels = scaled(RESNET_STAGES[0], width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu1=nn.ReLU(inplace=True),
    )
    for stage, full_width in enumerate(RESNET_STAGES, 1):
        members = []
        for block in range(blocks):
            outputs, stride = scaled(full_width, width), 2 if stage > 1 and block == 0 else 1
            members.append(ResidualBlock(channels, outputs, stride))
            channels = outputs
        layers[f"layer{stage}"] = nn.Sequential(*members)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(channels, classes)
    network = nn.Sequential(layers)
    initialise_convolutions(network)
    return network


def resnet20(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """ResNet-20 for CIFAR (He et al. 2015, section 4.2): (N, in_channels, 32, 32) -> logits (N, classes).

    Shortcuts that change the shape have no weights (their option A); 269,722 parameters by default. Layers are
    conv1, bn1, layer{1,2,3}.{block}.{conv1,bn1,conv2,bn2} and linear, as in published checkpoints.
    """
    return _resnet(RESNET_BLOCKS["resnet20"], classes, in_channels, width)


def resnet32(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """ResNet-32 for CIFAR, as resnet20 with five blocks a stage; 464,154 parameters by default."""
    return _resnet(RESNET_BLOCKS["resnet32"], classes, in_channels, width)


def resnet44(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """ResNet-44 for CIFAR, as resnet20 with seven blocks a stage; 658,586 parameters by default."""
    return _resnet(RESNET_BLOCKS["resnet44"], classes, in_channels, width)


def resnet56(classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Sequential:
    """ResNet-56 for CIFAR, as resnet20 with nine blocks a stage; 853,018 parameters by default."""
    return _resnet(RESNET_BLOCKS["resnet56"], classes, in_channels, width)
