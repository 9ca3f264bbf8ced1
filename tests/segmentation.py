"""Segmentation networks of torchvision through the calls of the library: score, prune, fine-tune, save, load."""

from pathlib import Path

import torch
from torch.nn import functional

import scap
from scap.data.torchvision_cure import import_torchvision

SEGMENTATION = {  # name -> layers that are pruned, of the backbone and of the head
    "fcn_resnet50": ["backbone.layer1.0.conv1", "backbone.layer4.2.conv2", "classifier.0"],
    "deeplabv3_resnet50": ["backbone.layer2.0.conv2", "classifier.0.convs.1.0", "classifier.1"],
    "lraspp_mobilenet_v3_large": ["backbone.4.block.2.fc1", "backbone.11.block.2.fc1"],
}


def half(network: torch.nn.Module, layers: list[str]) -> dict[str, list[int]]:
    """A plan that keeps half of the channels of these layers, by their filters' norms."""
    table = scap.score_network(network, None, layers=layers, criterion=scap.CriterionSettings(terms={"l1": 1}))
    return scap.plan_of_widths(table, {layer: len(group) // 2 for layer, group in table.groupby("layer")})


def check(name: str, folder: Path) -> None:
    """With random weights, on small random images."""

    def build() -> torch.nn.Module:
        return import_torchvision().models.get_model(name, weights=None, weights_backbone=None, num_classes=3)

    torch.manual_seed(0)
    network, images = build().eval(), torch.randn(2, 3, 32, 32)
    plan = half(network, SEGMENTATION[name])
    pruned = scap.prune_network(network, plan, images)
    for layer, kept in plan.items():
        assert pruned.get_submodule(layer).out_channels == len(kept)
    labels = torch.randint(3, (2, 32, 32))
    before = pruned.get_parameter(f"{next(iter(plan))}.weight").clone()
    (row,) = scap.finetune(
        pruned,
        [(images, labels)],
        scap.TrainingSettings(epochs=1, batch_size=2, learning_rate=0.01),
        loss=lambda outputs, targets: functional.cross_entropy(outputs["out"], targets),
        evaluate=lambda net: float((net(images)["out"].argmax(1) == labels).float().mean()),
    )
    assert not torch.equal(before, pruned.get_parameter(f"{next(iter(plan))}.weight"))
    assert 0 <= row["evaluation"] <= 1
    scap.save_network(folder / "file", pruned, example_shape=images.shape)
    again = scap.load_network(folder / "file", build=build)
    with torch.no_grad():
        torch.testing.assert_close(again(images)["out"], pruned(images)["out"])
