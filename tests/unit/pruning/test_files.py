"""Networks saved by scap.pruning.surgery load from their own file alone, with bit-equal outputs."""

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.files import load_network, load_unpruned, read_metadata, save_network
from scap.pruning.surgery import cut_network


class Joined(nn.Module):
    """A network of one's own: two branches, concatenated."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.after, self.head = nn.Conv2d(9, channels, 1), nn.Linear(channels, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.cat([self.left(images).relu(), self.right(images).relu()], 1)
        return self.head(self.after(hidden).relu().mean((2, 3)))


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize(("architecture", "layer"), [("vgg16", "conv2_2"), ("resnet20", "layer2.1.conv1")])
def test_a_pruned_network_loads_from_its_own_file(architecture, layer, images, tmp_path):
    arguments = {"width": 0.25, "classes": 7}
    network = build_network(architecture, **arguments).train()
    network(images)  # statistics of the batch norms
    plan = {layer: [1, 2, 5]}
    pruned, path = cut_network(network, plan, images[:1]).eval(), tmp_path / "pruned.safetensors"
    about = {"architecture": architecture, "arguments": arguments, "plan": plan, "extra": {"seed": 3}}
    save_network(path, pruned, example_shape=images.shape, **about)
    before = torch.get_rng_state()
    loaded = load_network(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert torch.equal(loaded(images), pruned(images))
    assert read_metadata(path) == {**about, "example_shape": [3, 3, 32, 32]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["pruned.safetensors"]


def test_an_unpruned_network_needs_neither_plan_nor_example(images, tmp_path):
    network = build_network("vgg16", width=0.125).eval()
    save_network(tmp_path / "network", network, architecture="vgg16", arguments={"width": 0.125})
    for load in (load_network, load_unpruned):
        assert torch.equal(load(tmp_path / "network")(images), network(images))


def test_a_pruned_network_is_no_baseline(images, tmp_path):
    network = build_network("vgg16", width=0.125)
    plan, path = {"conv2_2": [0, 2]}, tmp_path / "pruned"
    save_network(path, cut_network(network, plan, images), architecture="vgg16", plan=plan, example_shape=images.shape)
    with pytest.raises(ScapError, match="pruned: is a pruned network where an unpruned one is wanted"):
        load_unpruned(path)


def test_a_network_of_ones_own_loads_with_build_in_its_precision(tmp_path):
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    plan = {"right": [1, 3]}
    pruned = cut_network(Joined().double(), plan, images)
    path = tmp_path / "own.safetensors"
    save_network(path, pruned, plan=plan, example_shape=images.shape)
    for build in (Joined, lambda: Joined().double()):
        assert torch.equal(load_network(path, build=build)(images), pruned(images))
    with pytest.raises(ScapError, match="names no architecture; pass `build`"):
        load_network(path)
    with pytest.raises(ScapError, match=r"own\.safetensors: its weights do not fit"):
        load_network(path, build=lambda: Joined(8))


def test_the_network_that_build_gives_stays_as_it_is(tmp_path):
    images, network = torch.randn(3, 3, 8, 8), Joined().eval()
    before, path = network(images), tmp_path / "own.safetensors"
    save_network(path, cut_network(network, {"right": [1, 3]}, images), plan={"right": [1, 3]}, example_shape=images.shape)
    assert load_network(path, build=lambda: network).right.out_channels == 2
    assert torch.equal(network(images), before)


def test_an_architecture_unknown_here_asks_for_build(tmp_path):
    save_network(tmp_path / "network", Joined(), architecture="joined")
    with pytest.raises(ScapError, match=r"'joined' is unknown.*pass `build`"):
        load_network(tmp_path / "network")
    assert isinstance(load_network(tmp_path / "network", build=Joined), Joined)


def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    network = Joined()
    with pytest.raises(ScapError, match="'left' keeps 2 channels, but the network's has 4"):
        save_network(tmp_path / "network", network, plan={"left": [0, 1]}, example_shape=(1, 3, 8, 8))
    with pytest.raises(ScapError, match="what JSON can hold"):
        save_network(tmp_path / "network", network, extra={"tensor": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "network.safetensors"
    with pytest.raises(ScapError, match=r"network\.safetensors: there is no such file"):
        load_network(path)
    save_network(path, Joined())
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:20], b"", b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ScapError, match=r"network\.safetensors: the file is damaged"):
            load_network(path, build=Joined)
    assert b'plan\\": null' in whole
    path.write_bytes(whole.replace(b'plan\\": null', b'plan\\": nul['))
    with pytest.raises(ScapError, match=r"network\.safetensors: the file is damaged"):
        load_network(path, build=Joined)
    save_file(Joined().state_dict(), path)
    with pytest.raises(ScapError, match=r"network\.safetensors: is no network saved by SCAP"):
        load_network(path, build=Joined)


def test_a_bias_that_compensation_created_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)

    def build():
        layers = nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU()
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False))

    images, plan = torch.randn(64, 3, 10, 10), {"0": [0, 2, 5]}
    pruned, _ = prune_and_compensate(build(), plan, images, "full")
    assert pruned[2].bias is not None
    save_network(tmp_path / "network", pruned, plan=plan, example_shape=(1, 3, 10, 10))
    loaded = load_network(tmp_path / "network", build=build)
    assert torch.equal(loaded(images), pruned(images))
    assert loaded[2].bias.requires_grad


def fails():
    return {}["key"]


BUILDS = {
    "a network": (nn.Conv2d(3, 4, 3), "build: is a Conv2d; give a function that makes the unpruned network"),
    "text": ("vgg16", "build: is a str; give a function"),
    "nothing": (lambda: None, "build: it gives the wrong thing: network: is a NoneType, not a torch.nn.Module"),
    "a class": (lambda: nn.Conv2d, "build: it gives the wrong thing: network: is a type, not a torch.nn.Module"),
    "wrapped": (lambda: nn.DataParallel(Joined()), "network: it is wrapped in DataParallel; pass `network.module`"),
    "compiled": (lambda: torch.compile(Joined()), "network: it is compiled by torch.compile; pass `network._orig_mod`"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"network: '0' \(LazyConv2d\) has no weights yet; run the network"),
    "an error": (fails, "build: it fails with KeyError: 'key'"),
    "an argument": (lambda channels: Joined(channels), "build: it fails with TypeError: .* missing 1 required"),
}


@pytest.mark.parametrize("load", [load_network, load_unpruned])
@pytest.mark.parametrize("kind", BUILDS)
def test_a_build_that_makes_no_network_is_told(kind, load, tmp_path):
    build, message = BUILDS[kind]
    save_network(tmp_path / "network", Joined())
    with pytest.raises(ScapError, match=f"network: {message}" if message.startswith("build") else message) as raised:
        load(tmp_path / "network", build=build)
    assert "\n" not in str(raised.value)


def circular():
    values: list = []
    values.append(values)
    return {"values": values}


def deep():
    values: list = []
    for _ in range(100_000):
        values = [values]
    return {"values": values}


class Buffer(nn.Module):
    """A network that holds a tensor of any kind."""

    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("kept", tensor)


class Versioned(nn.Conv2d):
    _version = "two"


SHAPES = r"^example_shape: give the sizes of an input, whole numbers of 0 or more, such as images\.shape"
ARGUMENTS = {
    "plan": ([[0], 3, {0}, "left"], r"^plan: is a \w+; it must map layers to the channels that they keep$"),
    "example_shape": ([torch.rand(2, 3, 4, 4), 3, 3.0, (-1, 3), (1.5, 3), "1338", [[1, 3]], (None,)], SHAPES),
    "extra": ([[1], [], 3, "text", (("a", 1),)], r"^extra: is a \w+; it must be a dict$"),
    "arguments": ([[1], (), 3, "width"], r"^arguments: is a \w+; it must be a dict$"),
    "architecture": ([3, Joined, ["vgg16"]], r"^architecture: is a \w+; it must be a str$"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (values, _) in ARGUMENTS.items() for value in values])
def test_an_argument_that_could_not_be_read_again_is_not_written(name, value, tmp_path):
    with pytest.raises(ScapError, match=ARGUMENTS[name][1]):
        save_network(tmp_path / "network", Joined(), **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["arguments", "extra"])
@pytest.mark.parametrize("value", [circular(), deep(), {"a": {1}}, {"a": b"1"}])
def test_what_json_cannot_hold_is_not_written(name, value, tmp_path):
    with pytest.raises(ScapError, match="arguments and extra must hold what JSON can hold"):
        save_network(tmp_path / "network", Joined(), **{name: value})
    assert not list(tmp_path.iterdir())


def test_arguments_have_names(tmp_path):
    """JSON would make text of the number, and the file give other arguments than were saved."""
    with pytest.raises(ScapError, match="arguments: their names must be text"):
        save_network(tmp_path / "network", Joined(), arguments={1: 2})


NETWORKS = {
    "no module": ({"a": 1}, "network: is a dict, not a torch.nn.Module"),
    "a class": (Joined, "network: is a type, not a torch.nn.Module"),
    "DataParallel": (nn.DataParallel(Joined()), "network: it is wrapped in DataParallel; pass `network.module`"),
    "compiled": (torch.compile(Joined()), "network: it is compiled by torch.compile; pass `network._orig_mod`"),
    "lazy": (nn.Sequential(nn.LazyConv2d(4, 3)), r"network: '0' \(LazyConv2d\) has no weights yet; run the network"),
    "meta": (Joined().to("meta"), "network: 'left.weight' is on the device meta, which keeps no values"),
    "sparse": (Buffer(torch.eye(3).to_sparse()), r"network: 'kept' is of the layout torch\.sparse_coo; make it a dense"),
    "versions": (Versioned(3, 4, 3), "network: the versions of its state are no dict of names"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_that_could_not_be_loaded_is_not_written(kind, tmp_path):
    network, message = NETWORKS[kind]
    with pytest.raises(ScapError, match=message):
        save_network(tmp_path / "network", network)
    assert not list(tmp_path.iterdir())


def test_negative_channels_are_not_written(tmp_path):
    with pytest.raises(ScapError, match="plan: layer 'left': its channels must be whole numbers of 0 or more"):
        save_network(tmp_path / "network", Joined(), plan={"left": [-1, 0, 1, 2]})


def test_a_place_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "network", tmp_path / "file" / "deep" / "network"):
        with pytest.raises(ScapError, match="network: cannot be written"):
            save_network(place, Joined())


@pytest.mark.parametrize("shape", [torch.Size([1, 3, 8, 8]), [1, 3, 8, 8], torch.tensor([1, 3, 8, 8]), range(3), ()])
def test_sizes_may_come_as_any_whole_numbers(shape, tmp_path):
    save_network(tmp_path / "network", Joined(), example_shape=shape)
    assert read_metadata(tmp_path / "network")["example_shape"] == [int(size) for size in shape]


@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_a_plan_may_be_any_mapping(kind, tmp_path):
    save_network(tmp_path / "network", Joined(), plan=kind({"left": [0, 1, 2, 3]}))
    assert read_metadata(tmp_path / "network")["plan"] == {"left": [0, 1, 2, 3]}
