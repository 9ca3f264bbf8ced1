"""Recipes of the documentation run."""

import re
from pathlib import Path

import torch
from torch import nn

import scap

RECIPES = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def recipe(title: str, **given) -> dict:
    """Run the Python of a recipe; the names that it leaves."""
    text = RECIPES.split(f"\n## {title}\n")[1].split("\n## ")[0]
    exec(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0], given)
    return given


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        x = self.stem(images).relu()
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


def test_layers_that_go_together_are_pruned():
    network, images = Residual().eval(), torch.randn(64, 3, 8, 8)
    smaller = recipe("Prune layers that go together", scap=scap, network=network, images=images)["smaller"]
    assert scap.count_operations(smaller, images)["macs"] <= 0.5 * scap.count_operations(network, images)["macs"]
    assert smaller.stem.out_channels == smaller.outer.out_channels < 16


def test_torch_pruning_takes_a_criterion():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    recipe("Score for Torch-Pruning", scap=scap, network=network, images=torch.randn(64, 3, 8, 8))
    widths = [network[0].out_channels, network[2].out_channels]
    assert 8 <= sum(widths) <= 16
    assert all(width % 4 == 0 for width in widths)
