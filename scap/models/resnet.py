"""Residual networks for 32x32 images, with layers named as in the literature."""

from collections import OrderedDict

from torch import Tensor, nn

from scap.models.layers import initialise_convolutions, scaled

RESNET_STAGES = (16, 32, 64)


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
