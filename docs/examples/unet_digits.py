"""A segmentation network of one's own: a U-Net is trained, pruned to a budget, and fine-tuned with its own loss and measure.

    pip install '.[data]'
    python docs/examples/unet_digits.py

The data are scikit-learn's handwritten digits (1,797 images of 8x8 pixels, UCI), several pasted on a noisy canvas. The network
tells for each pixel whether it belongs to the stroke of a digit from 0 to 4, of one from 5 to 9, or to none. Canvases for
testing hold digits that none for training does. Prints the mean intersection over union, FLOPs and parameters after each step.
Minutes on two cores.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import scap

CLASSES, SIDE, DIGIT = 3, 24, 8
STROKE = 8  # of 16 grey levels: from here on a pixel is part of a stroke
TRAINING = 1400  # digits for training; the others are for testing


class UNet(nn.Module):
    """Two steps down and up again, with connections across (Ronneberger, Fischer and Brox 2015)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.up2, self.up1 = block(6 * width, 2 * width), block(3 * width, width)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.down1(images)
        second = self.down2(functional.max_pool2d(first, 2))
        bottom = self.bottom(functional.max_pool2d(second, 2))
        second = self.up2(torch.cat([functional.interpolate(bottom, scale_factor=2), second], 1))
        return self.classifier(self.up1(torch.cat([functional.interpolate(second, scale_factor=2), first], 1)))


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def canvases(count: int, seed: int, *, training: bool) -> tuple[Tensor, Tensor]:
    """Images (count, 1, SIDE, SIDE) around 0 and the class of each pixel (count, SIDE, SIDE): four digits on each of them."""
    digits, random = load_digits(), np.random.default_rng(seed)
    chosen = range(TRAINING) if training else range(TRAINING, len(digits.images))
    images = random.uniform(0, 6, (count, SIDE, SIDE))
    labels = np.zeros((count, SIDE, SIDE), dtype=np.int64)
    half = SIDE // 2
    for image, label in zip(images, labels, strict=True):
        for corner in ((0, 0), (0, half), (half, 0), (half, half)):
            index = random.choice(chosen)
            row, column = corner + random.integers(half - DIGIT + 1, size=2)
            place = np.s_[row : row + DIGIT, column : column + DIGIT]
            image[place] = np.maximum(image[place], digits.images[index])
            label[place] = (digits.images[index] >= STROKE) * (1 + digits.target[index] // 5)
    return torch.from_numpy(images / 8 - 1).float()[:, None], torch.from_numpy(labels)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of pixels, as strokes are few with weights, and 1 - Dice of the classes."""
    weights = logits.new_tensor([0.5, 1, 1])
    chance, true = logits.softmax(1), functional.one_hot(labels, CLASSES).movedim(-1, 1)
    shared, both = (chance * true).sum((0, 2, 3)), chance.sum((0, 2, 3)) + true.sum((0, 2, 3))
    return functional.cross_entropy(logits, labels, weights) + 1 - (2 * shared / both).mean()


def overlap(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean over classes of intersection over union, in percent."""
    found = torch.cat([network(batch).argmax(1) for batch in images.split(64)])
    ious = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum() for c in range(CLASSES)]
    return 100 * float(torch.stack(ious).mean())


def steps(count: int, width: int, epochs: int, share: float, path: Path) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """The network after each step, and the images and labels for testing."""
    data, test = canvases(count, 0, training=True), canvases(max(32, count // 8), 1, training=False)
    torch.manual_seed(0)
    network, common = UNet(width), {"batch_size": 32, "weight_decay": 1e-4}
    scap.finetune(network, data, scap.TrainingSettings(epochs=epochs, learning_rate=0.1, **common), loss=loss)
    yield "trained", network, *test
    images = data[0][:512]
    table = scap.score_network(network, images, criterion="conditional")
    plan = scap.plan_for(table, network, images[:1], macs=share, min_channels=2)
    pruned = scap.prune_network(network, plan, images, compensate="full")
    yield "pruned", pruned, *test
    settings = scap.TrainingSettings(epochs=max(1, epochs // 3), learning_rate=0.03, **common)
    scap.finetune(pruned, data, settings, loss=loss, evaluate=lambda net: {"overlap": overlap(net, *test)})
    yield "fine-tuned", pruned, *test
    scap.save_network(path, pruned, example_shape=images[:1].shape)
    yield "loaded", scap.load_network(path, build=lambda: UNet(width)), *test


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Print and return a row for each step: overlap in percent, macs, params."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=2000, help="canvases for training")
    parser.add_argument("--width", type=int, default=16, help="channels of the first block")
    parser.add_argument("--epochs", type=int, default=12, help="of the first training; fine-tuning takes a third")
    parser.add_argument("--share", type=float, default=0.4, help="share of the FLOPs that stays")
    parser.add_argument("--file", type=Path, default=Path("unet.safetensors"), help="where the pruned network goes")
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    for name, network, images, labels in steps(options.count, options.width, options.epochs, options.share, options.file):
        with torch.no_grad():
            found = overlap(network.eval(), images, labels)
        rows.append({"step": name, "overlap": found, **scap.count_operations(network, images[:1])})
        macs, params = rows[-1]["macs"], rows[-1]["params"]
        print(f"{name:<11} mean IoU {found:5.1f} %   {macs:>11,} MACs   {params:>8,} parameters")
    return rows


if __name__ == "__main__":
    main()
