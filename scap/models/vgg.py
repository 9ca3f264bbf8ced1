"""VGG16 for 32x32 images, with layers named as in the literature."""

from collections import OrderedDict

from torch import nn

from scap.models.layers import initialise_convolutions
from scap.models.names import VGG16_BLOCKS, scaled


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
