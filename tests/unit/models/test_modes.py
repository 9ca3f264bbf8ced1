"""Modes of a network's modules while it is evaluated."""

import pytest
import torch
from torch import nn

import scap
from scap.data.datasets import Images
from scap.models.build import check_logits
from scap.models.modes import in_evaluation
from scap.training.loop import evaluate


class Failing(nn.Module):
    """Fails in evaluation mode, as a network that has diverged or an evaluation of one's own."""

    def forward(self, values):
        if not self.training:
            raise ValueError("no")
        return values


def mixed(*last):
    """A network in training mode with a batch normalisation that is frozen."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2), *last)
    network[1].eval()
    return network


def modes(network):
    return [module.training for module in network.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_is_in_its_own_mode_afterwards(fails):
    network = mixed(*[Failing()] * fails)
    before = modes(network)
    try:
        with in_evaluation(network):
            assert not any(modes(network))
            network(torch.zeros(1, 3, 4, 4))
    except ValueError:
        assert fails
    assert modes(network) == before


def images():
    return Images(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("fails", [False, True])
def test_top1_and_a_check_leave_the_modes(fails):
    network = mixed(*[Failing()] * fails)
    before = modes(network)
    for measure in (
        lambda: evaluate(network, images(), torch.zeros(3), torch.ones(3)),
        lambda: check_logits(network, (3, 4, 4), 2),
    ):
        try:
            measure()
        except (ValueError, scap.ScapError):
            assert fails
        assert modes(network) == before


def test_an_evaluation_of_ones_own_that_fails_leaves_the_network_in_training():
    def failing(network):
        raise ValueError("no")

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    data = torch.randn(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="no"):
        scap.finetune(network, data, scap.TrainingSettings(epochs=1, batch_size=4, learning_rate=0.01), evaluate=failing)
    assert all(modes(network))


def test_a_check_changes_nothing_of_the_network():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48, 2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, values):
            self.count += 1
            return self.layer(values.flatten(1))

    network = Counting()
    check_logits(network, (3, 4, 4), 2)
    assert network.count == 0
