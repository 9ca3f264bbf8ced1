"""The control of uniform width: the same share of every layer, at no more than the MACs of the plan it is compared with."""

import pytest
import torch

from scap.models.build import build_network
from scap.pruning.counting import count_operations
from scap.pruning.surgery import prune_network
from scap.pruning.widths import uniform_widths

EXAMPLE = torch.zeros(1, 3, 32, 32)
PLAN = {"conv1_2": list(range(3)), "conv2_1": list(range(30)), "conv3_1": list(range(20)), "conv4_2": list(range(100))}


@pytest.fixture(scope="module")
def network():
    return build_network("vgg16", width=0.25)


def macs(network, widths):
    return count_operations(prune_network(network, {layer: list(range(n)) for layer, n in widths.items()}, EXAMPLE), EXAMPLE)[
        "macs"
    ]


@pytest.mark.parametrize("multiple", [1, 4])
def test_uniform_widths_meet_the_budget_and_no_larger_share_does(network, multiple):
    widths = uniform_widths(network, PLAN, EXAMPLE, multiple)
    totals = {layer: network.get_submodule(layer).out_channels for layer in PLAN}
    budget = macs(network, {layer: len(kept) for layer, kept in PLAN.items()})
    assert widths.keys() == PLAN.keys()
    assert all(width % multiple == 0 for width in widths.values())
    assert macs(network, widths) <= budget
    shares = [widths[layer] / totals[layer] for layer in PLAN]
    assert max(shares) - min(shares) < multiple / min(totals.values())
    assert macs(network, {layer: min(totals[layer], width + multiple) for layer, width in widths.items()}) > budget


@pytest.mark.parametrize("multiple", [1, 4])
def test_law_7_nothing_is_pruned_where_the_plan_keeps_all(network, multiple):
    totals = {layer: network.get_submodule(layer).out_channels for layer in PLAN}
    assert uniform_widths(network, {layer: list(range(n)) for layer, n in totals.items()}, EXAMPLE, multiple) == totals
