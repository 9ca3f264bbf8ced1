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
from scap.pruning.history import NOTE, WHOLE
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


PLACES = {
    "nothing": (None, r"path is None \(NoneType\); give the path of a file"),
    "a number": (3, r"path is 3 \(int\); give the path"),
    "bytes": (b"file", r"path is b'file' \(bytes\); give the path"),
    "no name": ("", "path is '', which names no file"),
    "this folder": (".", r"path is '\.', which names no file"),
    "NUL": ("a\0b", r"path is 'a\\x00b': it holds a character that no file's name may hold"),
    "half a character": ("\ud800", r"path is '\\ud800': it holds a character"),
}
CALLS = {
    "save": lambda path: save_network(path, Joined()),
    "load": lambda path: load_network(path, build=Joined),
    "load_unpruned": lambda path: load_unpruned(path, build=Joined),
    "read": read_metadata,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_path_is_named(kind, call):
    path, message = PLACES[kind]
    with pytest.raises(ScapError, match=f"^{message}") as raised:
        CALLS[call](path)
    assert "\n" not in str(raised.value)


class Moves(nn.Module):
    """Statistics that follow in evaluation, too, a tensor made at the first pass, and noise."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale, self.grid = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Parameter(torch.ones(1)), None
        self.register_buffer("mean", torch.ones(()))

    def forward(self, images):
        self.mean.mul_(0.9).add_(0.1 * images.mean())
        if self.grid is None:
            self.grid = torch.linspace(0, 1, images.shape[-1])
        return self.b(self.a(images).relu() + self.scale * self.grid + torch.rand(())) * self.mean


@pytest.mark.parametrize("world", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 8, 8)])
def test_the_trial_of_a_loaded_network_leaves_no_trace(world, example, tmp_path):
    images = torch.randn(2, 3, 8, 8)
    pruned = cut_network(Moves(), {"a": [0, 1]}, images)
    save_network(tmp_path / "n", pruned, example_shape=images.shape)
    before = torch.get_rng_state()
    with world():
        loaded = load_network(tmp_path / "n", build=Moves, example=example)
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.mean.item(), loaded.grid) == (1, None)
    assert not any(value.is_inference() for value in (*loaded.parameters(), *loaded.buffers()))
    loaded.train()(images).sum().backward()


def chain(kernel=3, hidden=6, grid=8):
    """Two convolutions and a linear layer, and an embedding of places."""
    network = nn.Sequential(nn.Conv2d(3, 8, kernel, padding=kernel // 2), nn.ReLU(), Placed(8, grid))
    network.extend([nn.Conv2d(8, hidden, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * hidden, 5)])
    return network


class Placed(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 1, size, size))
        self.rows = nn.Parameter(torch.randn(1, channels, size, 1))

    def forward(self, hidden):
        return hidden + self.places + self.rows


OTHERS = {
    "a larger kernel": ({"kernel": 5}, r"0\.weight is \(2, 3, 3, 3\) there, .*but \(8, 3, 5, 5\) here"),
    "a smaller kernel": ({"kernel": 1}, r"0\.weight is \(2, 3, 3, 3\) there, .*but \(8, 3, 1, 1\) here"),
    "more channels": ({"hidden": 12}, "'3' has 6 output channels there, 12 of 12 by its plan"),
    "a larger grid": ({"grid": 16}, r"2\.places is \(1, 1, 8, 8\) there, .*but \(1, 1, 16, 16\) here"),
}


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("kind", OTHERS)
def test_another_architecture_is_refused(kind, noted, tmp_path):
    """Where the file is an older one, without the shapes before the cut (`noted`), kernels and channels still tell."""
    images, (arguments, message) = torch.randn(2, 3, 8, 8), OTHERS[kind]
    pruned = cut_network(chain(), {"0": [1, 4]}, images)
    if not noted:
        delattr(pruned, WHOLE)
    save_network(tmp_path / "n", pruned, example_shape=images.shape)
    assert torch.equal(load_network(tmp_path / "n", build=chain)(images), pruned(images))
    if noted or "grid" not in arguments:
        message = message.replace(".*", ".*before it was pruned, " if noted else "")
        with pytest.raises(ScapError, match=f"{message}.*; give a `build` that makes the network of this file") as raised:
            load_network(tmp_path / "n", build=lambda: chain(**arguments))
        assert "\n" not in str(raised.value)


def test_shapes_before_the_cut_are_known_after_two_cuts_and_a_file(tmp_path):
    images, network = torch.randn(2, 3, 8, 8), chain()
    sizes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for number, plan in enumerate([{"0": [1, 4, 5]}, {"0": [0, 2], "3": [0, 5]}, {"3": [1]}]):
        network = cut_network(network, plan, images)
        save_network(tmp_path / f"{number}", network, example_shape=images.shape)
        network = load_network(tmp_path / f"{number}", build=chain)
        assert {name: whole for name, (whole, _) in getattr(network, WHOLE).items()} == sizes
    with pytest.raises(ScapError, match=r"2\.places is \(1, 1, 8, 8\) there"):
        load_network(tmp_path / "2", build=lambda: chain(grid=9))


def replaced(network, layer, module):
    network.set_submodule(layer, module)
    return network


def test_a_new_head_on_a_pruned_network_loads_with_a_build_that_makes_it(tmp_path):
    images = torch.randn(2, 3, 8, 8)
    pruned = replaced(cut_network(chain(), {"3": [0, 2]}, images), "6", nn.Linear(8, 11))
    save_network(tmp_path / "n", pruned, example_shape=images.shape)
    loaded = load_network(tmp_path / "n", build=lambda: replaced(chain(), "6", nn.Linear(24, 11)))
    assert torch.equal(loaded(images), pruned(images))


@pytest.mark.parametrize("plan", [{"0": [5, 6]}, {"3": [1]}, {"0": [1], "3": [0]}, {}])
def test_a_note_does_not_outlive_its_layer(plan, tmp_path):
    """Someone puts whole layers in the place of pruned ones: what is pruned then has the new layers' numbers."""
    images, network = torch.randn(2, 3, 8, 8), chain()
    pruned = cut_network(network, {"0": [0, 1, 2], "3": [1, 3]}, images)
    for layer, fresh in (("0", nn.Conv2d(3, 8, 3, padding=1)), ("2", Placed(8, 8)), ("3", nn.Conv2d(8, 2, 1))):
        replaced(pruned, layer, fresh)
    again = cut_network(pruned, plan, images)
    expected = {"3": [1, 3]} | {layer: kept if layer != "3" else [[1, 3][k] for k in kept] for layer, kept in plan.items()}
    assert getattr(again, NOTE)[0] == expected
    save_network(tmp_path / "n", again, example_shape=images.shape)
    assert torch.equal(load_network(tmp_path / "n", build=chain)(images), again(images))


class Shared(nn.Module):
    """Layers, biases or buffers that may be one."""

    def __init__(self, what=""):
        super().__init__()
        self.a, self.b, self.d, self.e = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        for each, place in ((self.b, 1), (self.d, 2)):
            each.register_buffer("shift", torch.full((8, 1, 1), float(place)))
        if what == "layer":
            self.d = self.b
        elif what:
            setattr(self.d, what, getattr(self.b, what))

    def forward(self, images):
        hidden = self.a(images).relu()
        return self.e((self.b(hidden) + self.b.shift).relu() + (self.d(hidden.flip(3)) + self.d.shift).relu())


SHARED = {"weight": "weight", "bias": "bias", "shift": "shift", "layer": r"\w+"}


@pytest.mark.parametrize("plan", [None, {"a": [0, 3]}])
@pytest.mark.parametrize("what", SHARED)
def test_two_tensors_of_a_file_do_not_become_one(what, plan, tmp_path):
    images, network = torch.randn(2, 3, 8, 8), Shared()
    nn.init.normal_(network.b.bias)
    save_network(tmp_path / "n", cut_network(network, plan, images) if plan else network)
    with pytest.raises(
        ScapError, match=rf"b\.{SHARED[what]} and d\.{SHARED[what]} are two tensors there, one tensor here; give"
    ):
        load_network(tmp_path / "n", build=lambda: Shared(what))


@pytest.mark.parametrize("plan", [None, {"a": [0, 3]}, {"b": [0, 3, 4]}])
@pytest.mark.parametrize("what", [what for what in SHARED if what != "shift"])
def test_one_tensor_of_a_file_may_become_two(what, plan, tmp_path):
    images, network = torch.randn(2, 3, 8, 8), Shared(what).eval()
    saved = cut_network(network, plan, images, coupled=True) if plan else network
    save_network(tmp_path / "n", saved)
    for build in (Shared, lambda: Shared(what)):
        assert torch.equal(load_network(tmp_path / "n", build=build)(images), saved(images))


def test_equal_tensors_of_a_file_may_become_one(tmp_path):
    images, network = torch.randn(2, 3, 8, 8), Shared()
    network.d.weight = nn.Parameter(network.b.weight.detach().clone())
    save_network(tmp_path / "n", network)
    assert torch.equal(load_network(tmp_path / "n", build=lambda: Shared("weight"))(images), network(images))


class Renames(Moves):
    """A state of other names, or without some of its tensors."""

    def __init__(self, change):
        super().__init__()
        self._register_state_dict_hook(change.save)
        self._register_load_state_dict_pre_hook(change.load)

    def forward(self, images):
        return self.b(self.a(images).relu())


class Change:
    """Renames layer a's tensors, and may turn them."""

    def __init__(self, turned):
        self.turned = turned

    def save(self, network, state, prefix, metadata):
        for name in [name for name in state if name.startswith(prefix + "a.")]:
            state["old." + name] = self._value(state.pop(name))

    def load(self, state, prefix, *_):
        for name in [name for name in state if name.startswith("old.")]:
            state[name[4:]] = self._value(state.pop(name))

    def _value(self, value):
        return value.flip(0) if self.turned else value


class Late(nn.Module):
    """A buffer that the first pass makes, in one of three ways."""

    def __init__(self, way="none"):
        super().__init__()
        self.a, self.b, self.way = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), way
        if way != "new":
            self.register_buffer("gain", torch.zeros(1) if way == "one" else None)

    def forward(self, images):
        hidden = self.a(images).relu()
        if self.way == "new" and not hasattr(self, "gain"):
            self.register_buffer("gain", torch.ones(8, 1, 1))
        elif self.gain is None or self.gain.ndim == 1:
            self.gain = torch.arange(8.0)[:, None, None]
        return self.b(hidden * self.gain)


def run_once(network):
    network(torch.randn(2, 3, 8, 8))
    return network


STATES = {
    "other names": lambda: Renames(Change(turned=False)),
    "other values": lambda: Renames(Change(turned=True)),
    "a buffer of none": Late,
    "a buffer of one value": lambda: Late("one"),
    "a build that is run": lambda: run_once(Late("new")),
}


@pytest.mark.parametrize("plan", [None, {"a": [0, 3]}])
@pytest.mark.parametrize("kind", STATES)
def test_unusual_states_come_back(kind, plan, tmp_path):
    images, network = torch.randn(2, 3, 8, 8), run_once(STATES[kind]()).eval()
    saved = cut_network(network, plan, images) if plan else network
    save_network(tmp_path / "n", saved)
    assert torch.equal(load_network(tmp_path / "n", build=STATES[kind], example=images)(images), saved(images))


def test_a_buffer_that_only_a_first_pass_makes_names_the_remedy(tmp_path):
    save_network(tmp_path / "n", run_once(Late("new")))
    with pytest.raises(ScapError, match=r'"gain".*where a first pass makes tensors, let `build` run the network once'):
        load_network(tmp_path / "n", build=lambda: Late("new"))


@pytest.mark.filterwarnings("ignore")
def test_a_network_prepared_for_quantisation_comes_back(tmp_path):
    quantization = torch.ao.quantization

    def build():
        network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).train()
        network.qconfig = quantization.get_default_qat_qconfig("x86")
        return quantization.prepare_qat(network)

    images, network = torch.randn(2, 3, 8, 8), run_once(build()).eval()
    save_network(tmp_path / "n", network)  # before a pass, which would move what it observes
    assert torch.equal(load_network(tmp_path / "n", build=build)(images), network(images))


class Kernels(nn.Conv2d):
    """A convolution that keeps its kernel under another name."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.kernels = nn.Parameter(self.weight.detach().clone())
        del self.weight

    def forward(self, images):
        return nn.functional.conv2d(images, self.kernels, self.bias)


@pytest.mark.parametrize("kept", [[0, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_a_layer_that_names_its_kernel_otherwise_is_no_hindrance(kept, tmp_path):
    def build(hidden=8):
        return nn.Sequential(Kernels(3, 6, 1), nn.Conv2d(6, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 2, 1)).eval()

    images, saved = torch.randn(2, 3, 8, 8), build(len(kept))
    save_network(tmp_path / "n", saved, plan={"1": kept}, example_shape=images.shape)
    assert torch.equal(load_network(tmp_path / "n", build=build)(images), saved(images))
    with pytest.raises(ScapError, match=r"layer '0' is no convolution or linear layer \(it is a Kernels without a 'weight'\)"):
        save_network(tmp_path / "n", saved, plan={"0": [0, 1]})
