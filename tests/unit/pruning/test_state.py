"""Everything that a network's state holds comes back from its file, and no file makes the loader do what it should not."""

import json
import resource
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from scap.data.torchvision_cure import import_torchvision
from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning.files import FORMAT, load_network, read_metadata, save_network
from scap.pruning.history import applied, compose
from scap.pruning.state import NOTES
from scap.pruning.surgery import cut_network
from scap.tensors import save_tensors
from scap.training.loop import round_kernels


class Versioned(nn.Module):
    """Old states hold its scale as a logarithm; tied weights, a counter that is no tensor, a buffer outside of the state."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)
        self.c.weight = self.b.weight
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("hidden", torch.zeros(1, 6, 1, 1), persistent=False)
        self.seen = {"images": 0, "names": ["x"], "mean": torch.zeros(2)}

    def forward(self, images):
        hidden = self.a(images) * self.scale[:, None, None] + self.hidden
        return self.b(hidden) + self.c(hidden.flip(3))

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "scale"] = state_dict[prefix + "scale"].exp()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def versioned():
    network = Versioned().eval()
    network.hidden.normal_()
    network.seen = {"images": 7, "names": ["y", "z"], "mean": torch.ones(2)}
    return network


@pytest.mark.parametrize("plan", [None, {"a": [0, 2, 5]}])
def test_the_whole_state_comes_back(versioned, images, tmp_path, plan):
    network = versioned if plan is None else cut_network(versioned, plan, images).eval()
    save_network(tmp_path / "n", network)
    loaded = load_network(tmp_path / "n", build=Versioned, example=images)
    assert torch.equal(loaded(images), network(images))
    assert loaded.c.weight is loaded.b.weight
    assert sum(parameter.numel() for parameter in loaded.parameters()) == sum(p.numel() for p in network.parameters())
    assert (loaded.seen["images"], loaded.seen["names"], loaded.seen["mean"].tolist()) == (7, ["y", "z"], [1, 1])
    assert loaded.state_dict()._metadata == network.state_dict()._metadata
    assert {name for name, _ in loaded.named_buffers()} == {"hidden"}


@pytest.mark.parametrize("rounded", [True, False])
def test_kernels_that_float16_holds_need_half_the_space_and_come_back_whole(tmp_path, rounded):
    network = build_network("vgg16", width=0.0625)
    if rounded:
        round_kernels(network)
    save_network(tmp_path / "n", network, architecture="vgg16", arguments={"width": 0.0625})
    values = {name: value for name, value in network.state_dict().items() if value.dtype == torch.float32}
    kernels = sum(value.numel() for value in values.values() if value.ndim > 1)
    others = sum(value.numel() for value in values.values() if value.ndim < 2)
    counters = 8 * sum(value.dtype == torch.int64 for value in network.state_dict().values())
    loaded = load_network(tmp_path / "n").state_dict()
    with safe_open(tmp_path / "n", "pt") as file:
        found = {name: file.get_tensor(name) for name in loaded}
    assert sum(value.nbytes for value in found.values()) == (2 if rounded else 4) * kernels + 4 * others + counters
    assert loaded.keys() == network.state_dict().keys()
    assert all(
        loaded[name].dtype == value.dtype and torch.equal(loaded[name], value) for name, value in network.state_dict().items()
    )


def test_one_weight_that_float16_does_not_hold_keeps_its_kernel_whole(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    round_kernels(network)
    with torch.no_grad():
        network[1].weight[0, 0, 0, 0] = 1 / 3
    save_network(tmp_path / "n", network)
    with safe_open(tmp_path / "n", "pt") as file:
        assert {name: file.get_tensor(name).dtype for name in ("0.weight", "1.weight", "0.bias")} == {
            "0.weight": torch.float16,
            "1.weight": torch.float32,
            "0.bias": torch.float32,
        }
    loaded = load_network(tmp_path / "n", build=lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)))
    assert torch.equal(loaded[1].weight, network[1].weight)


def test_a_network_of_half_precision_comes_back_as_one(tmp_path):
    network = nn.Conv2d(3, 4, 3).half()
    save_network(tmp_path / "n", network)
    assert load_network(tmp_path / "n", build=lambda: nn.Conv2d(3, 4, 3)).weight.dtype == torch.float16


def test_a_state_that_would_run_code_is_not_saved(versioned, tmp_path):
    versioned.seen = {"function": Versioned}
    with pytest.raises(ScapError, match=r"state '_extra_state' .* cannot be saved safely"):
        save_network(tmp_path / "n", versioned)
    assert not list(tmp_path.iterdir())


def test_mnasnet_loads(tmp_path):
    models = import_torchvision().models
    network, images = models.mnasnet0_5(weights=None).eval(), torch.randn(1, 3, 64, 64)
    pruned = cut_network(network, {"layers.14": [0, 3, 4]}, images)
    save_network(tmp_path / "n", pruned)
    loaded = load_network(tmp_path / "n", build=lambda: models.mnasnet0_5(weights=None), example=images)
    assert torch.equal(loaded(images), pruned(images))


def test_a_network_pruned_twice_is_saved_with_the_two_plans_in_one(tmp_path):
    images = torch.randn(1, 3, 32, 32)
    network = build_network("vgg16", width=0.125).eval()
    once = cut_network(network, {"conv1_1": [0, 3, 5, 7], "conv2_1": [1, 2]}, images)
    twice = cut_network(once, {"conv1_1": [1, 2], "conv3_1": [4]}, images)
    whole = {"conv1_1": [3, 5], "conv2_1": [1, 2], "conv3_1": [4]}
    assert applied(twice) == whole
    for plan in (None, whole, {"conv1_1": [1, 2], "conv3_1": [4]}):
        path = tmp_path / "n"
        save_network(path, twice, architecture="vgg16", arguments={"width": 0.125}, plan=plan, example_shape=images.shape)
        assert read_metadata(path)["plan"] == whole
        loaded = load_network(path)
        assert torch.equal(loaded(images), twice(images))
        assert applied(loaded) == whole
        again = cut_network(loaded, {"conv1_1": [0]}, images)
        assert applied(again)["conv1_1"] == [3]


def test_compose_counts_in_the_unpruned_network():
    assert compose({}, {"a": [1]}) == {"a": [1]}
    assert compose({"a": [1, 4, 6], "b": [0]}, {"a": [0, 2], "c": [3]}) == {"a": [1, 6], "b": [0], "c": [3]}


def test_another_plan_of_the_same_lengths_is_refused(tmp_path):
    images = torch.randn(1, 3, 32, 32)
    pruned = cut_network(build_network("vgg16", width=0.125), {"conv1_1": [0, 3]}, images)
    with pytest.raises(ScapError, match="not the one that prune_network applied"):
        save_network(tmp_path / "n", pruned, plan={"conv1_1": [0, 4]}, example_shape=images.shape)
    with pytest.raises(ScapError, match="not a mask of booleans"):
        save_network(tmp_path / "n", pruned, plan={"conv1_1": [True, False]}, example_shape=images.shape)


def test_folders_are_made(tmp_path):
    save_network(tmp_path / "deep" / "er" / "n", nn.Conv2d(1, 1, 1))
    assert load_network(tmp_path / "deep" / "er" / "n", build=lambda: nn.Conv2d(1, 1, 1))


def hostile(path: Path, **changes) -> Path:
    """A file of a narrow VGG16 that says something else about itself."""
    network = build_network("vgg16", width=0.0625)
    fields = {
        "architecture": "vgg16",
        "arguments": {"width": 0.0625},
        "plan": None,
        "example_shape": [1, 3, 32, 32],
        "extra": {},
    }
    save_tensors(path, network.state_dict(), {FORMAT: json.dumps(fields | changes)})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        *({"arguments": {"width": width}} for width in (5, 1e6, 1e30, float("nan"), -1, 0, [0.5, [1]], "wide", None, {"a": 1})),
        {"arguments": {"width": 0.0625, "classes": -3}},
        {"arguments": {"width": 0.0625, "classes": 10**12}},
        {"arguments": {"depth": 3}},
        {"plan": {"conv1_1": [0, 1]}},
        {"plan": {"conv1_1": [0, 1, 2, 900]}},
        {"plan": {"classifier": [0]}},
        {"plan": {"conv1_1": "all"}},
        {"plan": [1]},
        {"plan": {"conv1_1": [0, 1, 2, 3]}, "example_shape": [1, 5, 32, 32]},
        {"plan": {"conv1_1": [0, 1, 2, 3]}, "example_shape": ["a"]},
        {"architecture": "vgg99"},
        {"architecture": ["vgg16"]},
        {"arguments": None},
        *({note: value} for note in NOTES for value in (3, [3], [["conv1_1.weight"]], "conv1_1.weight", {"a": {}})),
    ],
)
def test_what_a_hostile_file_says_ends_in_one_line(changes, tmp_path):
    path = hostile(tmp_path / "n.safetensors", **changes)
    with pytest.raises(ScapError, match=r"n\.safetensors: ") as raised:
        load_network(path)
    assert "\n" not in str(raised.value)


def loaded(paths: list[Path]) -> tuple[str, int]:
    """What is said when files are loaded, and by how many KB the process grew at most."""
    before, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
    for path in paths:
        try:
            load_network(path)
        except ScapError as error:
            said += f"{error}\n"
    return said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_a_small_file_allocates_little_whatever_it_asks_for(tmp_path):
    wide = hostile(tmp_path / "wide.safetensors", arguments={"width": 5})
    plan = {"conv1_1": [0, 1, 2, 3]}
    large = hostile(tmp_path / "large.safetensors", plan=plan, example_shape=[64, 3, 20000, 20000])
    fork = get_context("fork")  # a process of its own, whose largest size is its own
    answer, question = fork.Pipe()
    process = fork.Process(target=lambda: question.send(loaded([wide, large])))
    process.start()
    question.close()
    said, grown = answer.recv()
    process.join()
    assert "weights do not fit" in said
    assert grown < 100_000


class OneMask(nn.Module):
    """One buffer under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        mask = torch.linspace(0.5, 1, 6).reshape(1, 6, 1, 1)
        self.register_buffer("first", mask)
        self.register_buffer("second", mask)

    def forward(self, images):
        return self.b((self.a(images) * self.first).relu() * self.second)


def test_a_buffer_under_two_names_is_cut_once_and_stays_one(images, tmp_path):
    pruned = cut_network(OneMask(), {"a": [0, 2, 5]}, images).eval()
    assert pruned.first is pruned.second
    assert pruned.first.shape == (1, 3, 1, 1)
    save_network(tmp_path / "n", pruned)
    loaded = load_network(tmp_path / "n", build=OneMask, example=images)
    assert torch.equal(loaded(images), pruned(images))
