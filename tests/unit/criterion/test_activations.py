"""Recorded activations: equal to a plain forward pass whatever the network's style, readable by others."""

import resource
import weakref

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import scap
from scap.criterion.activations import record_activations
from scap.criterion.chains import Follower
from scap.errors import ScapError
from scap.models.build import build_network
from scap.models.layers import conv_layers


class OwnConvolution(nn.Conv2d):
    """A subclass defined outside torch, which tracing would see through."""


class Styles(nn.Module):
    """Every way of writing an activation; `steps` gives the reference values, written out without tricks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.b, self.norm_b = OwnConvolution(4, 5, 3, stride=2), nn.BatchNorm2d(5)
        self.c, self.norm_c = nn.Conv2d(5, 5, (1, 3), padding=(0, 1)), nn.BatchNorm2d(5)
        self.d, self.e = nn.Conv2d(5, 6, 1), nn.Conv2d(6, 6, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm_a(self.a(images)))
        x = F.leaky_relu(self.norm_b(self.b(x)), 0.1, inplace=True)
        skip = x
        x = (self.norm_c(self.c(input=x)) + skip).relu_()
        x = torch.tanh(self.d(x))
        x = self.e(x)
        return F.relu(x) + x

    def steps(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Layer -> input, own output, activated output."""
        own_a = self.a(images)
        in_b = self.norm_a(own_a).clamp(min=0)
        own_b = self.b(in_b)
        normed = self.norm_b(own_b)
        in_c = torch.where(normed > 0, normed, 0.1 * normed)
        own_c = self.c(in_c)
        in_d = (self.norm_c(own_c) + in_c).clamp(min=0)
        own_d = self.d(in_d)
        own_e = self.e(own_d.tanh())
        return {
            "a": (images, own_a, in_b),
            "b": (in_b, own_b, in_c),
            "c": (in_c, own_c, self.norm_c(own_c)),  # the addition ends its chain
            "d": (in_d, own_d, own_d.tanh()),
            "e": (own_d.tanh(), own_e, own_e),  # two users: what follows is not its activation alone
        }


class Branching(nn.Module):
    """Control flow that depends on values: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.conv(images), inplace=True) if images.sum() < 1e9 else images


class Bypassed(Branching):
    """Its convolution is never used."""

    def forward(self, images: Tensor) -> Tensor:
        return images.relu()


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(7, 3, 9, 12)


@pytest.fixture
def styles(images):
    network = Styles()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    network.train()(images)
    return network


def record(network, images, folder, layers=None, **settings):
    layers = list(conv_layers(network)) if layers is None else layers
    path = folder / "activations.safetensors"
    record_activations(network, images, layers, path, **settings)
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes()[0] % 8 == 0  # length of the header: the data is aligned
    with safe_open(path, framework="pt") as file:
        names = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in file.keys()))  # noqa: SIM118 (not a dict)
        assert sorted(names) == sorted(layers)
        return {layer: (file.get_tensor(f"{layer}.inputs"), file.get_tensor(f"{layer}.outputs")) for layer in layers}


@torch.no_grad()
def reference(network, images, batch_size, outputs):
    network.eval()
    batches = [network.steps(batch) for batch in images.split(batch_size)]
    network.train()
    places = (0, 2 if outputs == "activated" else 1)
    return {layer: tuple(torch.cat([batch[layer][at] for batch in batches]) for at in places) for layer in "abcde"}


@pytest.mark.parametrize("outputs", ["activated", "convolution"])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_every_style_equals_a_plain_forward_pass(styles, images, tmp_path, outputs, batch_size):
    recorded = record(styles, images, tmp_path, outputs=outputs, batch_size=batch_size, dtype=torch.float32)
    expected = reference(styles, images, batch_size, outputs)
    assert recorded.keys() == expected.keys()
    for layer, (inputs, values) in expected.items():
        assert torch.equal(recorded[layer][0], inputs), layer
        assert torch.allclose(recorded[layer][1], values, rtol=0, atol=1e-6), layer


@pytest.mark.parametrize("architecture", ["vgg16", "resnet20"])
def test_real_networks_equal_what_hooks_see(architecture, tmp_path):
    torch.manual_seed(1)
    network, images = build_network(architecture, width=0.125), torch.randn(5, 3, 32, 32)
    network.train()(images)
    recorded = record(network, images, tmp_path, batch_size=2, dtype=torch.float32)
    seen: dict[str, list[Tensor]] = {}
    for name, module in network.eval().named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: seen.setdefault(name, []).append(o.clone()))
        module.register_forward_pre_hook(lambda m, i, name=name: seen.setdefault(f">{name}", []).append(i[0].clone()))
    with torch.no_grad():
        for batch in images.split(2):
            network(batch)
    for layer, (inputs, outputs) in recorded.items():
        stem, last = (layer[:-5], layer[-5:]) if "." in layer else ("", layer)
        if architecture == "vgg16" or last == "conv1":
            end = stem + last.replace("conv", "relu")
        else:
            end = f"{stem}bn2" if last == "conv2" else layer.replace("shortcut.conv", "shortcut.bn")
        assert torch.equal(inputs, torch.cat(seen[f">{layer}"])), layer
        assert torch.equal(outputs, torch.cat(seen[end])), (layer, end)


def test_half_precision_is_the_rounded_value(styles, images, tmp_path):
    recorded = record(styles, images, tmp_path, batch_size=3)
    expected = reference(styles, images, 3, "activated")
    for layer, tensors in recorded.items():
        for stored, value in zip(tensors, expected[layer], strict=True):
            assert stored.dtype == torch.float16
            torch.testing.assert_close(stored.float(), value, rtol=2**-10, atol=1e-6)


def test_only_the_layers_asked_for_are_written(styles, images, tmp_path):
    assert list(record(styles, images, tmp_path, layers=["d", "b"])) == ["d", "b"]


def test_the_network_stays_as_it_was(styles, images, tmp_path):
    before = {name: value.clone() for name, value in styles.state_dict().items()}
    kept = images.clone()
    for number, outputs in enumerate(["activated", "convolution"]):
        record(styles, images, tmp_path / str(number), outputs=outputs)
    assert all(torch.equal(value, before[name]) for name, value in styles.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in styles.modules())
    assert torch.equal(images, kept)


def test_progress_is_reported_by_images(styles, images, tmp_path):
    rows: list[dict[str, int]] = []
    record(styles, images, tmp_path, batch_size=3, report=rows.append)
    assert rows == [{"images": done, "total": 7} for done in (3, 6, 7)]


TOO_LARGE = r"the a.outputs reach .*float16 holds; use `dtype: float32`"
DIVERGED = "the a.outputs hold NaN or infinity"


@pytest.mark.parametrize(("scale", "message"), [(1e6, TOO_LARGE), (float("nan"), DIVERGED)])
def test_values_that_do_not_fit_name_the_layer_and_leave_no_file(styles, images, tmp_path, scale, message):
    nn.init.constant_(styles.norm_a.weight, scale)
    with pytest.raises(ScapError, match=message) as raised:
        record_activations(styles, images, ["a", "d"], tmp_path / "file")
    assert "While executing" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_float32_holds_what_float16_cannot(styles, images, tmp_path):
    nn.init.constant_(styles.norm_a.weight, 1e6)
    assert record(styles, images, tmp_path, layers=["a"], dtype=torch.float32)["a"][1].max() > 65504


@pytest.mark.parametrize("outputs", ["activated", "convolution"])
def test_control_flow_by_values_is_followed(images, tmp_path, outputs):
    network = Branching()
    recorded = record(network, images, tmp_path, outputs=outputs, dtype=torch.float32)
    with torch.no_grad():
        own = network.conv(images)
        assert torch.equal(recorded["conv"][1], own.relu() if outputs == "activated" else own)


class Choosing(Branching):
    """Bright images go another way."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv(images)
        return hidden.relu() if images.mean() > 0 else hidden.tanh()


def test_images_that_go_different_ways_are_refused(images, tmp_path):
    mixed = torch.cat([images.abs(), -images.abs()])
    with pytest.raises(ScapError, match=r"same operations for every image.*Use outputs: convolution"):
        record(Choosing(), mixed, tmp_path, batch_size=7)
    assert not list(tmp_path.iterdir())
    assert record(Choosing(), mixed, tmp_path, outputs="convolution", batch_size=7)["conv"][1].shape[0] == 14


class InPlace(nn.Module):
    """What reads the convolution's memory after an activation in place reads the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.a(images)
        x = F.relu(x, inplace=True) + x
        y = self.b(x)
        x = self.c(F.softsign(y)) * y.shape[1]
        return x.sigmoid_().sum((2, 3))


def test_what_was_handed_on_is_held_no_longer():
    """Activations of all layers together may be too many for the memory: of a batch, only those are held that are in use."""
    parts = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(5)]
    follower = Follower(nn.Sequential(*parts).eval(), [f"{number}.0" for number in range(5)])
    given: list[weakref.ref[Tensor]] = []
    alive = []

    def receive(layer: str, kind: str, values: Tensor) -> None:
        if kind == "outputs":
            given.append(weakref.ref(values))
            alive.append(sum(each() is not None for each in given))

    follower.receive = receive
    with torch.no_grad():
        follower.run(torch.rand(2, 3, 4, 4))
        follower.run(torch.rand(2, 3, 4, 4))
    assert len(given) == 10
    assert max(alive) <= 2


def test_readers_are_told_by_values(images, tmp_path):
    recorded = record(InPlace(), images, tmp_path, dtype=torch.float32)
    assert recorded["a"][1].min() == 0
    network = InPlace()
    recorded = record(network, images, tmp_path, dtype=torch.float32)
    with torch.no_grad():
        own = network.b(recorded["b"][0])
    assert torch.allclose(recorded["b"][1], own / (1 + own.abs()), atol=1e-6)
    assert torch.allclose(recorded["c"][0], recorded["b"][1])
    assert recorded["c"][1].shape == (7, 4, 9, 12)


class Paired(nn.Module):
    """Two arguments, one of them a mask that may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.conv(images if mask is None else images * mask).relu()


def test_several_arguments_and_loaders(images, tmp_path):
    network, mask = Paired(), torch.rand(7, 1, 9, 12) > 0.5
    plain = record(network, images, tmp_path, batch_size=2)
    loader = DataLoader(TensorDataset(images, torch.zeros(7)), batch_size=3)
    assert torch.equal(record(network, loader, tmp_path)["conv"][1], plain["conv"][1])
    named = record(network, {"images": images, "mask": mask}, tmp_path, batch_size=2)
    listed = record(network, (images, mask), tmp_path, batch_size=5)
    assert torch.equal(named["conv"][0], (images * mask).half())
    assert torch.equal(listed["conv"][1], named["conv"][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_precisions_are_recorded(images, tmp_path, dtype):
    torch.manual_seed(0)
    network = Paired().to(dtype)
    recorded = record(network, images, tmp_path)["conv"][1]
    assert recorded.dtype == torch.float16
    torch.testing.assert_close(recorded, network(images.to(dtype)).detach().half())


@pytest.mark.parametrize("world", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_world_changes_no_activation(images, tmp_path, world):
    network = Paired()
    expected = record(network, images, tmp_path)["conv"][1]
    with world():
        assert torch.equal(record(network, images, tmp_path)["conv"][1], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: (images * 255).byte(), "of torch.uint8; give normalised floats"),
        (lambda images: images.index_fill(0, torch.tensor([3]), float("nan")), "hold NaN or infinity; normalise them"),
        (lambda images: images[0], "give normalised floats"),
        (lambda images: images[:0], "give normalised floats"),
        (lambda images: None, "is a NoneType; give a tensor"),
        (lambda images: (images, images[:2]), "different numbers of images"),
        (lambda images: iter([]), "the loader gives nothing"),
        (lambda images: images.to_sparse(), r"^images is of the layout torch\.sparse_coo; make it a dense tensor"),
        (lambda images: (images, images.to_sparse()), r"^images is of the layout torch\.sparse_coo; make it a dense tensor"),
        (lambda images: torch.nested.as_nested_tensor(list(images), layout=torch.jagged), "^images is nested; make it a dense"),
        (lambda images: images.to("meta"), "^images is on the device meta, which keeps no values"),
    ],
)
def test_wrong_images_are_named(images, tmp_path, change, message):
    with pytest.raises(ScapError, match=message):
        record(Paired(), change(images), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("outputs", ["activated", "convolution"])
def test_unused_and_reused_layers_are_named(images, tmp_path, outputs):
    shared = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ScapError, match="'0' is used more than once"):
        record(network, images, tmp_path, outputs=outputs)
    with pytest.raises(ScapError, match="'conv' is not used"):
        record(Bypassed(), images, tmp_path, outputs=outputs)


def test_a_reused_layer_of_a_group_is_named_with_what_can_be_left_out(images):
    """Its own name is none that `layers` takes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), *[nn.Conv2d(4, 4, 1, groups=4)] * 2, nn.Conv2d(4, 2, 1))
    assert scap.prunable_layers(network, images[:1], coupled=True) == ["0"]
    with pytest.raises(ScapError, match=r"^layer '1' is used more than once .*; leave out its group, which scap\.explain with"):
        scap.score_network(network, images, coupled=True, criterion="rms")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ["z"]}, "layer 'z' is no ungrouped convolution; choose from a, b, c, d, e"),
        ({"layers": []}, "layers: none is given"),
        ({"layers": "ab"}, r"^layers is 'ab' \(str\); give a list of layers' names, such as \['conv1'\]"),
        ({"layers": [0]}, r"^layers holds \d \(int\); give a list"),
        ({"outputs": "after"}, "outputs: 'after' is unknown; choose from activated, convolution"),
        ({"dtype": torch.int8}, "dtype: torch.int8 holds no activations; choose from torch.float16, torch.float32, "),
        ({"dtype": torch.bfloat16}, "dtype: torch.bfloat16 holds no activations"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_wrong_requests_are_refused(styles, images, tmp_path, arguments, message):
    with pytest.raises(ScapError, match=message):
        record(styles, images, tmp_path, **arguments)


def test_a_full_disk_is_an_error_that_names_the_file(styles, images, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # the largest file that may be written
    try:
        with pytest.raises(ScapError, match=r"activations\.safetensors: cannot be written .* are needed, .* are free"):
            record(styles, images, tmp_path, batch_size=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_grouped_convolutions_are_not_listed():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), nn.Conv1d(2, 2, 1))
    assert list(conv_layers(network)) == ["1"]
