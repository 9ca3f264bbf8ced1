"""Two processes that share each batch are one process, up to rounding."""

from functools import partial
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from two import in_two

import scap
from scap.training.processes import Shares

SETTINGS = scap.TrainingSettings(epochs=2, batch_size=8, learning_rate=0.05, momentum=0.5)


def made():
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, momentum=None)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2)),
    )
    return scap.prune_network(network, {"0": [0, 2, 3, 5, 7]}, torch.zeros(1, 3, 6, 6))


def data(count=24):
    inputs = (
        torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        * torch.arange(1, count + 1)[:, None, None, None]
    )
    return inputs, (inputs.mean((1, 2, 3)) > 0).long()


def trained(given=None, settings=SETTINGS):
    network = made()
    history = scap.finetune(network, given() if given else data(), settings, evaluate=lambda net: net(data()[0]).mean())
    return {name: value.tolist() for name, value in network.state_dict().items()}, [row["loss"] for row in history]


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}])
def test_two_processes_end_with_the_weights_of_one(tmp_path, changes):
    """Batch norms included, with running statistics; on images of very different variance."""
    settings = scap.TrainingSettings(**vars(SETTINGS) | changes)
    alone, losses = trained(settings=settings)
    first, second = in_two(partial(trained, settings=settings), tmp_path)
    assert first[0] == second[0]
    for name, values in alone.items():
        torch.testing.assert_close(torch.tensor(first[0][name]), torch.tensor(values), rtol=1e-4, atol=1e-5)
    assert first[1] == pytest.approx(losses, rel=1e-5)
    assert torch.tensor(alone["1.num_batches_tracked"]) == 6


def sampled():
    return DataLoader(TensorDataset(*data()), batch_size=4, sampler=DistributedSampler(TensorDataset(*data())))


def test_a_loader_with_a_distributed_sampler(tmp_path):
    first, second = in_two(partial(trained, sampled), tmp_path)
    assert first == second
    assert first[1][1] < first[1][0]


def uneven():
    inputs, targets = data()
    return [(inputs[:4], targets[:4])] * (2 + dist.get_rank())


def nine():
    return scap.finetune(made(), data(), scap.TrainingSettings(1, 9, 0.05))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (partial(trained, uneven), "data: the processes have different numbers of batches; use a DistributedSampler (2, 3)"),
        (partial(trained, lambda: data(1)), "data: 1 examples are fewer than 2 processes; give more"),
        (nine, "batch_size: 9 does not divide by 2 processes; give a multiple"),
    ],
)
def test_what_the_processes_cannot_share_is_told_by_both(tmp_path, function, message):
    assert in_two(function, tmp_path) == [message, message]


def test_the_parts_of_a_batch_are_the_whole_batch(monkeypatch):
    whole = list(Shares(21, 6, seed=2))
    parts = []
    for rank in range(3):
        monkeypatch.setattr("scap.training.processes.processes", lambda rank=rank: scap.training.processes.Processes(3, rank))
        parts.append(list(Shares(21, 6, seed=2)))
    assert [sorted(chain(*batch)) for batch in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]
    assert [len(batch) for batch in whole] == [6, 6, 6]
