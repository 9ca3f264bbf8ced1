"""Iterative pruning: each round scores what the round before left, and one plan does what all did."""

import copy

import pytest
import torch
from torch import nn

import scap
from scap.criterion import rounds
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
        ({"macs": 0.005}, r"round 1 of 2: the budget cannot be met: the smallest plan leaves"),
        ({"macs": None}, "no budget is given; say macs= or params="),
        ({"macs": 1.2}, r"macs is 1\.2; it must lie in"),
        ({"images": None}, "images is a NoneType; give a tensor"),
        ({"images": {}}, "images is a dict; give a tensor"),
        ({"images": {"images": torch.tensor(1.0)}}, "images: an argument is a single number"),
        ({"images": IMAGES[0], "compensate": "full"}, r"images: a tensor \(N, channels, H, W\) of at least 2"),
        ({"train": 5}, "train: is a int; give a function"),
        ({"report": 5}, "report: is a int; give a function"),
        ({"layers": 5}, r"layers is 5 \(int\); give a list"),
        ({"multiple": 0}, "multiple is 0; it must be 1 or more"),
        ({"min_channels": "2"}, r"min_channels is '2' \(str\); give a whole number"),
        ({"floors": {"3": None}}, r"floors: layer 3 is None \(NoneType\); give a whole number"),
        ({"ignore": [3]}, r"ignore holds 3 \(int\); give a list"),
        ({"coupled": None}, r"coupled is None \(NoneType\); give True or False"),
    ],
)
def test_what_cannot_be_done_is_told(options, message):
    with pytest.raises(ScapError, match=rf"^{message}"):
        scap.prune_in_rounds(made(), **{"images": IMAGES, "rounds": 2, "macs": 0.5, "criterion": L1, **options})


@pytest.mark.parametrize("options", [{"train": 5}, {"report": 5}, {"ignore": [0]}, {"floors": {0: 2}}, {"multiple": None}])
def test_arguments_are_checked_before_any_work(options, monkeypatch):
    monkeypatch.setattr(rounds, "score_network", None)
    monkeypatch.setattr(rounds, "count_operations", None)
    with pytest.raises(ScapError, match=min(options)):
        scap.prune_in_rounds(made(), IMAGES, 2, macs=0.5, criterion=L1, **options)


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


class Depthwise(nn.Module):
    """A group of `a` and `d`, which a small budget brings down to its last channel; `b` and `e` go alone."""

    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.b, self.e = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.h = nn.Conv2d(16, 4, 1)

    def forward(self, images):
        return self.h(self.e(self.b(self.d(self.a(images)).relu()).relu()).relu())


class Chain(nn.Sequential):
    """Two layers that go alone."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))


class Padded(nn.Module):
    """The stream's first half of channels is of `a` and `b`, the second one of `b` alone, which names their group at first."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1)
        self.o = nn.Conv2d(16, 2, 1)
        with torch.no_grad():  # the channels of `b` alone matter least
            self.a.weight[:] = torch.tensor([1.0, 0.9, 0.8, 0.7])[:, None, None, None]
            self.b.weight[:] = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.4])[:, None, None, None]

    def forward(self, images):
        narrow, wide = self.a(images), self.b(images)
        padded = nn.functional.pad(narrow, (0, 0, 0, 0, 0, wide.shape[1] - narrow.shape[1]))
        return self.o(self.h((padded + wide).relu()).relu())


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("criterion", ["l1", "rms", "conditional"])
@pytest.mark.parametrize(
    ("kind", "layers", "share"), [(Depthwise, ["a", "b", "e"], 0.03), (Chain, ["0", "2"], 0.05)], ids=["group", "chain"]
)
def test_layers_that_are_used_up_stay_as_they_are(kind, layers, share, criterion, coupled):
    """Whatever the later rounds are told of them: the result is that of a run that is told nothing."""
    layers = layers if coupled or kind is Chain else ["b", "e"]
    share = share if coupled or kind is Chain else 0.1

    def plan(**options):
        torch.manual_seed(0)
        return scap.prune_in_rounds(kind(), IMAGES, 4, macs=share, criterion=criterion, coupled=coupled, **options)[1]

    expected = plan()
    if criterion == "l1" and coupled:
        assert len(expected[layers[0]]) == 1
    for options in ({"layers": layers}, {"floors": dict.fromkeys(layers, 1)}, {"layers": layers, "floors": {layers[0]: 1}}):
        assert plan(**options) == expected


class Narrow(Depthwise):
    """Of the group's two channels the first round removes one, which is more than all rounds need: 0.942 of the MACs stay."""

    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.b = nn.Conv2d(2, 16, 3, padding=1)
        with torch.no_grad():  # no tie of the two
            for layer in (self.a, self.d):
                layer.weight[0], layer.weight[1] = 1.0, 0.1


ALONE = [
    {"ignore": ["b", "e"]},
    {"ignore": ["b", "e"], "floors": {"a": 1, "b": 2}},
    {"layers": ["a", "b"], "ignore": "b"},
    {"layers": ["a"]},
    {"layers": ["a"], "floors": {"a": 1}},
]


@pytest.mark.parametrize("options", ALONE)
def test_where_no_channel_is_left_later_rounds_train_all_the_same(options):
    trained = []
    options = {**options, "coupled": True, "criterion": "l1", "train": trained.append}
    _, plan = scap.prune_in_rounds(Narrow(), IMAGES, 4, macs=0.945, **options)
    assert plan == {"a": [0], "d": [0]}
    assert len(trained) == 4


@pytest.mark.parametrize("options", ALONE)
def test_a_budget_that_the_last_round_cannot_meet_is_told_before_the_first_training(options):
    options = {**options, "coupled": True, "criterion": "l1", "train": lambda network: pytest.fail("trained")}
    with pytest.raises(ScapError, match=r"^round 1 of 2: the budget cannot be met: the smallest plan leaves 0\.9\d+ of the"):
        scap.prune_in_rounds(Narrow(), IMAGES, 2, macs=0.92, **options)


PADDED = [{"layers": ["b", "h"]}, {"floors": {"b": 1}}, {"layers": ["h", "b"], "floors": {"b": 2, "h": 2}}]


@pytest.mark.parametrize("options", PADDED)
def test_a_group_may_have_another_name_in_later_rounds(options):
    def plan(**options):
        torch.manual_seed(0)
        return scap.prune_in_rounds(Padded(), IMAGES, 4, macs=0.35, criterion="l1", coupled=True, **options)[1]

    expected = plan()
    assert {"a", "b"} <= expected.keys()
    assert {layer: set(kept) for layer, kept in plan(**options).items()} == {k: set(kept) for k, kept in expected.items()}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images, shift):
        return self.b(self.a(images).relu()) + shift


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("criterion", ["l1", "rms", "fidelity"])
def test_images_of_several_arguments(criterion, coupled):
    shift = torch.zeros(len(IMAGES), 1, 1, 1)

    def plan(images):
        torch.manual_seed(0)
        return scap.prune_in_rounds(Two(), images, 2, macs=0.5, criterion=criterion, coupled=coupled)[1]

    assert plan({"images": IMAGES, "shift": shift}) == plan((IMAGES, shift))
    assert len(plan((IMAGES, shift))["a"]) == 4


def test_a_training_that_returns_another_network_is_not_passed_over():
    with pytest.raises(ScapError, match=r"^train: it returns another network; train the one that it is given, in place$"):
        scap.prune_in_rounds(made(), IMAGES, 2, macs=0.5, criterion=L1, train=copy.deepcopy)
    smaller, _ = scap.prune_in_rounds(made(), IMAGES, 2, macs=0.5, criterion=L1, train=nn.Module.train)  # the same one
    assert share(smaller) <= 0.5
