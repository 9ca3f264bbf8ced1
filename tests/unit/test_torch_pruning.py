"""SCAP as an importance of Torch-Pruning: its pruners take it, and keep what it says."""

import numpy as np
import pytest
import torch
import torch_pruning
from torch import nn

import scap
from scap.criterion.conditional import conditional_scores
from scap.errors import ScapError
from scap.pruning.surgery import coupled_groups
from scap.torch_pruning import ScapImportance

L1 = scap.CriterionSettings(terms={"l1": 1})
CONDITIONAL = scap.CriterionSettings(terms={"conditional": 1})
IMAGES = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Inverted(nn.Module):
    """A depthwise convolution on a residual stream."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.expand = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 16, 1)
        self.depthwise, self.project = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        x = self.stem(images).relu()
        x = x + self.project(self.depthwise(self.expand(x).relu()).relu())
        return self.head(x.mean((2, 3)))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 3, 1)
    )


class Branches(nn.Module):
    """A concatenation, and a hidden linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.after = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(16, 8, 1)
        self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, images):
        x = self.after(torch.cat([self.left(images), self.right(images)], 1).relu()).relu()
        return self.head(self.hidden(x.mean((2, 3))).relu())


NETWORKS = {
    "plain": (plain, lambda network: network[5]),
    "inverted": (Inverted, lambda network: network.head),
    "branches": (Branches, lambda network: network.head),
}
OPTIONS = {
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
    "iterative": {"iterative_steps": 2},
    "round_to": {"round_to": 4},
}


def pruner(network, head, importance, **options):
    settings = {"pruning_ratio": 0.5, "ignored_layers": [head(network)]} | options
    return torch_pruning.pruner.BasePruner(network, IMAGES[:1], importance, **settings)


@pytest.mark.parametrize("criterion", [L1, CONDITIONAL], ids=["l1", "conditional"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_pruners_take_it(kind, criterion):
    make, head = NETWORKS[kind]
    for options in OPTIONS.values():
        network = make().eval()
        before = scap.count_operations(network, IMAGES[:1])["macs"]
        importance = ScapImportance(network, IMAGES[:16], criterion=criterion)
        run = pruner(network, head, importance, **options)
        for _ in range(options.get("iterative_steps", 1)):
            run.step()
        assert scap.count_operations(network, IMAGES[:1])["macs"] < 0.9 * before
        if "round_to" in options:
            widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d) and m is not head(network)]
            assert all(width % 4 == 0 for width in widths)
        network.train()(IMAGES[:2]).sum().backward()


def test_the_channels_that_score_most_stay():
    network = Inverted().eval()
    scores = conditional_scores(network, IMAGES, coupled_groups(network, IMAGES[:1]))
    kept = {layer: np.sort(np.argsort(-scores[layer])[: len(scores[layer]) // 2]) for layer in ("stem", "expand")}
    expected = {
        "stem": network.stem.weight[kept["stem"]].clone(),
        "expand": network.expand.weight[kept["expand"]][:, kept["stem"]].clone(),
        "depthwise": network.depthwise.weight[kept["expand"]].clone(),
        "project": network.project.weight[kept["stem"]][:, kept["expand"]].clone(),
    }
    pruner(network, NETWORKS["inverted"][1], ScapImportance(network, IMAGES, criterion=CONDITIONAL)).step()
    for layer, weight in expected.items():
        assert torch.equal(network.get_submodule(layer).weight, weight)


def test_terms_of_a_layer_are_fused_over_the_layers_of_a_group():
    network = Inverted().eval()
    graph = torch_pruning.DependencyGraph().build_dependency(network, IMAGES[:1])
    norms = [network.expand.weight, network.depthwise.weight]
    values = np.stack([w.detach().double().abs().flatten(1).sum(1).numpy() for w in norms])
    values = (values - values.min(1, keepdims=True)) / np.ptp(values, 1)[:, None]
    for how, expected in {"mean": values.mean(0), "sum": values.sum(0), "max": values.max(0)}.items():
        importance = ScapImportance(network, IMAGES, scap.CriterionSettings(terms={"l1": 1}, together=how))
        for wanted in (list(range(16)), [2, 6, 9]):
            group = graph.get_pruning_group(network.expand, torch_pruning.prune_conv_out_channels, idxs=wanted)
            assert importance(group).numpy() == pytest.approx(expected[wanted], rel=1e-6)


def test_scores_are_made_again_when_the_weights_have_changed():
    network = plain().eval()
    graph = torch_pruning.DependencyGraph().build_dependency(network, IMAGES[:1])
    importance = ScapImportance(network, IMAGES, criterion=L1)
    group = graph.get_pruning_group(network[0], torch_pruning.prune_conv_out_channels, idxs=list(range(8)))
    best = int(importance(group).argmax())
    assert importance(group)[best] == 1
    with torch.no_grad():
        network[0].weight[best] = 0
    assert importance(group)[best] == 0


def test_a_group_without_a_score_is_named_with_the_reason():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, images):
            return self.c(self.b(self.b(self.a(images))))

    network = Reused().eval()
    importance = ScapImportance(network, IMAGES, criterion=CONDITIONAL)
    with pytest.raises(ScapError, match=r"has no score by the term 'conditional': .*runs more than once.*ignored_layers"):
        pruner(network, lambda n: n.c, importance).step()
