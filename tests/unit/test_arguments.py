"""Whatever is given to a public function by mistake ends with one short line that names it."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import scap
from scap.checks import check_flag, checked_mapping, checked_names, shown

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LONGEST = 700  # characters of a message: PyTorch's own reasons are in some


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))


TABLE = scap.score_network(made(), IMAGES, criterion="l1")
GIVEN = {  # what each function is given where it is not what is tried
    scap.score_network: {"images": IMAGES, "criterion": "l1"},
    scap.plan_at: {"table": TABLE, "threshold": 0.5},
    scap.plan_of_widths: {"table": TABLE, "widths": {"0": 3}},
    scap.plan_for: {"table": TABLE, "example": IMAGES, "macs": 0.5},
    scap.prunable_layers: {"example": IMAGES},
    scap.explain: {"example": IMAGES},
    scap.prune_network: {"plan": {"0": [0]}, "images": IMAGES},
    scap.prune_in_rounds: {"images": IMAGES, "rounds": 1, "macs": 0.5, "criterion": "l1"},
    scap.finetune: {
        "data": (IMAGES, torch.zeros(4, 4, 8, 8)),
        "settings": scap.TrainingSettings(epochs=1, batch_size=2, learning_rate=1e-3),
        "loss": functional.mse_loss,
    },
    scap.TrainingSettings: {"epochs": 1, "batch_size": 2, "learning_rate": 0.1},
    scap.CriterionSettings: {},
    scap.AutoencoderSettings: {},
}
VALUES = {
    **{"None": None, "a number": 5, "NaN": float("nan"), "a huge number": 10**400, "too many digits": 10**5000, "text": "x"},
    **{"an empty list": [], "a list of numbers": [0], "a list of lists": [[0]], "an empty mapping": {}, "numbers": {0: 2}},
    **{"an array": np.zeros(3), "an array of no dimension": np.array(1.0), "a table": pd.DataFrame({"a": [1]})},
    **{"a tensor": torch.zeros(3), "a tensor of no dimension": torch.tensor(1.0), "a class": dict, "nothing known": pd.NA},
}
ENDLESS = {("rounds", "a huge number"), ("rounds", "too many digits")}  # numbers of rounds, after all
CALLED = {"train", "report", "loss", "evaluate"}  # of these a class is one that can be called
ARGUMENTS = [(function, name) for function in GIVEN for name in inspect.signature(function).parameters]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("function", "name"), ARGUMENTS, ids=lambda value: getattr(value, "__name__", value))
def test_an_argument_of_another_kind_is_told_in_one_line(function, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # resume="x" is a file
    for kind, value in VALUES.items():
        if (name, kind) in ENDLESS or (name in CALLED and kind == "a class"):
            continue
        own = {"network": made()} if "network" in inspect.signature(function).parameters else {}
        message = ""
        try:
            function(**own | GIVEN[function] | {name: value})
        except scap.ScapError as error:
            message = str(error)
        assert "\n" not in message, kind
        assert len(message) < LONGEST, kind


@pytest.mark.parametrize("value", [None, 0, 1, "", float("nan"), np.zeros(2), torch.tensor(True), TABLE, nn.ReLU()])
@pytest.mark.parametrize(
    "function", [scap.score_network, scap.explain, scap.prunable_layers, scap.prune_network, scap.prune_in_rounds]
)
def test_coupled_is_true_or_false(function, value):
    with pytest.raises(scap.ScapError, match=rf"^coupled is .* \({type(value).__name__}\); give True or False$"):
        function(made(), **GIVEN[function], coupled=value)


def test_a_flag_of_numpy_is_one():
    for value in (True, False, np.True_, np.array([False])[0]):
        check_flag(value, "coupled")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": [0]}, r"^ignore holds 0 \(int\); give a list of layers' names, such as \['conv1'\]$"),
        ({"ignore": {0}}, r"^ignore holds 0 \(int\); give"),
        ({"ignore": [["0"]]}, r"^ignore holds \['0'\] \(list\); give"),
        ({"ignore": np.zeros(2)}, r"^ignore holds 0\.0 \(float64\); give"),
        ({"ignore": torch.tensor(1)}, r"^ignore is tensor\(1\) \(Tensor\); give"),
        ({"ignore": None}, r"^ignore is None \(NoneType\); give"),
        ({"floors": {0: 2}}, r"^floors: 0 \(int\) is no layer's name; it must map layers to their least widths, such as"),
        ({"floors": {None: 2}}, r"^floors: None \(NoneType\) is no layer's name"),
        ({"floors": pd.Series([2])}, r"^floors: 0 \(int\) is no layer's name"),
        ({"floors": dict}, r"^floors: is a type; it must map"),
        ({"floors": {"0": 0.5}}, r"^floors: layer 0 is 0\.5 \(float\); give a whole number"),
    ],
)
@pytest.mark.parametrize("function", [scap.plan_for, scap.prune_in_rounds])
def test_layers_are_named_by_texts(function, options, message):
    with pytest.raises(scap.ScapError, match=message):
        function(network=made(), **GIVEN[function], **options)


def test_no_more_threads_than_there_can_be_are_taken():
    for threads in (0, 10**400, 2**31, "2"):
        with pytest.raises(scap.ScapError, match=r"^threads is "):
            scap.plan_for(TABLE, made(), IMAGES, macs=0.5, threads=threads)


@pytest.mark.parametrize("value", [np.array(1.0), torch.tensor(1.0), np.array("x"), 3, "conv1"])
def test_names_that_are_no_list(value):
    with pytest.raises(scap.ScapError, match=rf"^layers is .* \({type(value).__name__}\); give a list of layers' names"):
        checked_names(value, "layers")


class Unwritten:
    def __repr__(self):
        raise RuntimeError


def test_values_are_shown_on_one_short_line():
    assert shown("x") == "'x'"
    assert shown(np.float64(0.5)) == "0.5"
    assert shown(10**5000) == shown(Unwritten()) == "..."
    for long in (10**400, torch.zeros(9, 9), pd.DataFrame({"a": range(99)}), ["name"] * 99):
        assert len(shown(long)) <= 60
        assert "\n" not in shown(long)
    assert checked_mapping(pd.Series({"a": 1}), "floors", "") == {"a": 1}


class Sizes(Dataset):
    """Two images of one size, then two of another one."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(3, 8 + index // 2, 8)


ONE_ARGUMENT = r"in a list, which is one argument \(give a tensor; batches as a DataLoader\)"
WRONG_IMAGES = {
    "a loader of several sizes": (lambda: DataLoader(Sizes(), 4), "^images: the loader fails at batch 1: .*be of one size$"),
    "a loader of batches of several sizes": (
        lambda: DataLoader(Sizes(), 2),
        r"^images: the batches 1 and 2 cannot be put together: \(2, 3, 8, 8\) on cpu and \(2, 3, 9, 8\) on cpu; give images of",
    ),
    "an iterator of several sizes": (lambda: iter([IMAGES, IMAGES[..., 1:]]), r"\(4, 3, 8, 8\) on cpu and \(4, 3, 8, 7\) on"),
    "images in place of batches": (lambda: iter([IMAGES, IMAGES[0]]), r"\(4, 3, 8, 8\) on cpu and \(3, 8, 8\) on cpu; give"),
    "numbers": (lambda: iter([torch.tensor(1.0)]), "^images: the loader gives single numbers; its batches must be tensors"),
    "a data set": (lambda: TensorDataset(IMAGES), r"^images is a TensorDataset; give a loader of it: torch\.utils\.data\.Data"),
    "a data set of one's own": (Sizes, "^images is a Sizes; give a loader of it"),
    "a part of a data set": (lambda: Subset(TensorDataset(IMAGES), [0, 1]), "^images is a Subset; give a loader of it"),
    "a list of batches": (lambda: [IMAGES, IMAGES], rf"of shapes \S.* {ONE_ARGUMENT}"),
    "a list of pairs": (lambda: [(IMAGES, IMAGES[:, 0, 0, 0])], ONE_ARGUMENT),
    "a list of batches of several lengths": (lambda: [IMAGES, IMAGES[:2]], ONE_ARGUMENT),
    "nested": (lambda: torch.nested.nested_tensor([IMAGES[0], IMAGES[1]]), "^(images|example) is nested; make it a dense"),
    "no values": (lambda: IMAGES.to("meta"), "^(images|example) is on the device meta, which keeps no values; make it on"),
}
TAKE_IMAGES = {
    "scored": lambda images: scap.score_network(made(), images, criterion="conditional"),
    "by weights": lambda images: scap.score_network(made(), images, criterion="l1"),
    "cut": lambda images: scap.prune_network(made(), {"0": [0]}, images),
    "in rounds": lambda images: scap.prune_in_rounds(made(), images, 1, macs=0.5, criterion="l1", layers=["0"]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("use", TAKE_IMAGES)
@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_images_that_are_no_images_are_told(use, kind):
    images, message = WRONG_IMAGES[kind]
    with pytest.raises(scap.ScapError, match=message):
        TAKE_IMAGES[use](images())


@pytest.mark.parametrize("example", [TensorDataset(IMAGES), DataLoader(TensorDataset(IMAGES)), Sizes()])
def test_an_example_is_one_batch(example):
    with pytest.raises(scap.ScapError, match=rf"^example is a {type(example).__name__}; give one batch of it"):
        scap.explain(made(), example)


class Listing(nn.Module):
    """A network whose one argument is a list of maps."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, maps):
        return self.b(sum(self.a(each) for each in maps).relu())


def test_a_list_may_be_the_one_argument():
    torch.manual_seed(0)
    network, images = Listing(), [IMAGES, IMAGES]
    assert scap.prunable_layers(network, images) == ["a"]
    assert len(scap.score_network(network, images, criterion="l1")) == 8
    _, plan = scap.prune_in_rounds(network, images, 2, macs=0.5, criterion="l1")
    assert len(plan["a"]) == 4
