"""Iterative pruning: each round scores what the round before left, and one plan does what all did."""

import pytest
import torch
from torch import nn

import scap
from scap.errors import ScapError
from scap.pruning.files import read_metadata

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
L1 = scap.CriterionSettings(terms={"l1": 1})
TARGETS = (IMAGES.mean((1, 2, 3)) > 0).long()


def made():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2)),
    ).eval()


def share(network, key="macs"):
    return scap.count_operations(network, IMAGES[:1])[key] / scap.count_operations(made(), IMAGES[:1])[key]


def test_without_training_the_one_plan_gives_the_same_network():
    """With the weights' norm, which no other channel's removal changes but through inputs that went."""
    network, reports = made(), []
    smaller, plan = scap.prune_in_rounds(network, IMAGES, 3, macs=0.4, criterion=L1, report=reports.append)
    at_once = scap.prune_network(network, plan, IMAGES)
    torch.testing.assert_close(smaller(IMAGES), at_once(IMAGES))
    assert share(network) == 1
    assert [report["round"] for report in reports] == [1, 2, 3]
    for report in reports:
        wanted = 0.4 ** (report["round"] / 3)
        assert wanted - 0.06 < report["macs"] <= wanted
    assert reports[-1]["macs"] == share(smaller)
    assert reports[-1]["params"] == share(smaller, "params")


def test_one_round_is_what_the_single_calls_do():
    network = made()
    smaller, plan = scap.prune_in_rounds(network, IMAGES, 1, params=0.5, criterion=L1, multiple=2, floors={"3": 10})
    table = scap.score_network(network, IMAGES, criterion=L1)
    assert plan == scap.plan_for(table, network, IMAGES[:1], params=0.5, multiple=2, floors={"3": 10})
    torch.testing.assert_close(smaller(IMAGES), scap.prune_network(network, plan, IMAGES)(IMAGES))


def test_each_round_scores_the_trained_network_and_one_file_holds_it_all(tmp_path):
    trained = []

    def train(network):
        trained.append(share(network))
        with torch.no_grad():  # the norm of the first layer's filters is turned upside down
            norms = network[0].weight.flatten(1).norm(dim=1)
            network[0].weight.div_(norms.square()[:, None, None, None])
        scap.finetune(network, (IMAGES, TARGETS), scap.TrainingSettings(1, 16, 1e-6))

    smaller, plan = scap.prune_in_rounds(made(), IMAGES, 2, macs=0.5, criterion=L1, train=train, ignore=["3"])
    assert len(trained) == 2
    assert trained[0] > trained[1] == share(smaller)
    assert list(plan) == ["0"]
    norms = made()[0].weight.flatten(1).abs().sum(1)
    order = norms.argsort().tolist()
    gone = [order.index(channel) for channel in range(16) if channel not in plan["0"]]
    assert {0, 15} <= set(gone)  # first the smallest went, then the largest
    scap.save_network(tmp_path / "file", smaller, example_shape=(1, 3, 8, 8))
    assert read_metadata(tmp_path / "file")["plan"] == plan
    again = scap.load_network(tmp_path / "file", build=made)
    torch.testing.assert_close(again(IMAGES), smaller(IMAGES))


def test_compensation_in_each_round():
    network = made()
    cut, _ = scap.prune_in_rounds(network, IMAGES, 2, macs=0.5, criterion=L1)
    full, _ = scap.prune_in_rounds(network, IMAGES, 2, macs=0.5, criterion=L1, compensate="full")
    errors = [(each(IMAGES) - network(IMAGES)).square().mean() for each in (full, cut)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0; it must be 1 or more"),
        ({"macs": 0.005}, r"round 2 of 2: the budget cannot be met: the smallest plan leaves"),
        ({"macs": None}, "no budget is given; say macs= or params="),
        ({"macs": 1.2}, r"macs is 1\.2; it must lie in"),
    ],
)
def test_what_cannot_be_done_is_told(options, message):
    with pytest.raises(ScapError, match=message):
        scap.prune_in_rounds(made(), IMAGES, **{"rounds": 2, "macs": 0.5, "criterion": L1, **options})


def test_a_network_that_is_trained_on_is_compensated_with_more_care():
    def cut(train=None, **ridge):
        network, _ = scap.prune_in_rounds(made(), IMAGES, 1, macs=0.5, criterion="l1", compensate="full", train=train, **ridge)
        return network[3].weight

    assert torch.equal(cut(), cut(ridge=0.01))
    assert torch.equal(cut(lambda network: None), cut(ridge=0.1))
    assert not torch.equal(cut(), cut(ridge=0.1))
    with pytest.raises(ScapError, match="ridge is 0; it must be above 0"):
        cut(ridge=0)


def test_images_of_a_loader():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, TARGETS), 8)
    given = [scap.prune_in_rounds(made(), images, 2, macs=0.5, criterion="conditional") for images in (IMAGES, loader)]
    assert given[0][1] == given[1][1]
