"""Sizes from shapes alone equal those that are counted after the cut."""

import random

import pytest
import torch
from torch import nn

from scap.models.build import build_network
from scap.pruning.counting import count_operations
from scap.pruning.sizes import Sizes
from scap.pruning.surgery import cut_network, prunable_layers

EXAMPLE = torch.zeros(1, 3, 32, 32)


class Branches(nn.Module):
    """A concatenation, a strided and a transposed convolution, a linear head on a flattened map."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.down, self.norm = nn.Conv2d(10, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 5, 2, 2)
        self.head = nn.Linear(5 * 32 * 32, 3)

    def forward(self, images):
        both = torch.cat([self.left(images).relu(), self.right(images).relu()], 1)
        return self.head(self.up(self.norm(self.down(both)).relu()).flatten(1))


@pytest.mark.parametrize("build", [lambda: build_network("vgg16", width=0.125), lambda: build_network("resnet20"), Branches])
def test_sizes_are_those_that_are_counted_after_the_cut(build):
    network = build().eval()
    sizes, draw, plan = Sizes(network, EXAMPLE), random.Random(0), {}
    for layer in prunable_layers(network, EXAMPLE):
        channels = network.get_submodule(layer).out_channels
        plan[layer] = sorted(draw.sample(range(channels), draw.randint(1, channels)))
    assert len(plan) > 2
    assert sizes.of(plan) == count_operations(cut_network(network, plan, EXAMPLE), EXAMPLE)
    assert sizes.of({}) == sizes.full == count_operations(network, EXAMPLE)


def test_a_budget_holds_for_the_plan_that_leaves_exactly_so_much():
    network = Branches().eval()
    sizes, plan = Sizes(network, EXAMPLE), {"left": [0, 3]}
    share = sizes.of(plan)["macs"] / sizes.full["macs"]
    assert sizes.meets({"macs": share})(plan)
    assert not sizes.meets({"macs": share * 0.999})(plan)
