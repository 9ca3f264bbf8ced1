"""Consumers: found by the graph of the surgery, believed only when running the network agrees."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from wired import Wired

from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning.next_layers import consumers as module
from scap.pruning.next_layers.consumers import find_consumers, slopes
from scap.pruning.surgery import prunable_layers


def found(network, layer="a", size=8):
    torch.manual_seed(0)
    readers = find_consumers(network.eval(), [layer], torch.randn(1, 3, size, size))[layer]
    return readers, [(c.name, c.group, c.channels.tolist(), c.columns.tolist(), c.norm) for c in readers.consumers]


def test_every_layer_of_the_architectures_has_its_consumer():
    images = torch.randn(1, 3, 32, 32)
    for architecture, consumer in (("vgg16", "conv2_1"), ("resnet20", None)):
        network = build_network(architecture, width=0.25).eval()
        layers = prunable_layers(network, images)
        readers = find_consumers(network, layers, images)
        assert all(each.obstacle is None and len(each.consumers) == 1 for each in readers.values())
        for layer in layers:
            expected = consumer if layer == "conv1_2" else layer.replace("conv1", "conv2") if "." in layer else None
            if expected:
                assert readers[layer].consumers[0].name == expected
                assert readers[layer].consumers[0].norm == expected.replace("conv", "bn")


def test_concatenation_flattening_and_depthwise_layers():
    layers = {"a": nn.Conv2d(3, 2, 1), "b": nn.Conv2d(3, 3, 1), "c": nn.Conv2d(5, 4, 2), "n": nn.BatchNorm2d(4)}
    network = Wired(lambda n, x: n.n(n.c(torch.cat([n.b(x), n.a(x).relu()], 1))).mean((2, 3)), **layers)
    taps = [[12, 13, 14, 15], [16, 17, 18, 19]]
    assert found(network)[1] == [("c", 0, [0, 1], taps, "n")]
    flat = Wired(lambda n, x: n.l(n.a(x).flatten(1)), a=nn.Conv2d(3, 2, 7), l=nn.Linear(8, 3))
    assert found(flat)[1] == [("l", 0, [0, 1], [[0, 1, 2, 3], [4, 5, 6, 7]], None)]
    layers = {"a": nn.Conv2d(3, 2, 1), "d": nn.Conv2d(2, 2, 3, groups=2), "c": nn.Conv2d(2, 3, 1)}
    moved = Wired(lambda n, x: n.l(n.a(x).permute(0, 2, 3, 1).flatten(1)), a=nn.Conv2d(3, 2, 7), l=nn.Linear(8, 3))
    assert found(moved)[1] == [("l", 0, [0, 1], [[0, 2, 4, 6], [1, 3, 5, 7]], None)]
    depthwise = Wired(lambda n, x: n.c(functional.relu6(n.d(n.a(x)))), **layers)
    readers, consumers = found(depthwise)
    assert consumers == [("c", 0, [0, 1], [[0], [1]], None)]
    assert set(readers.outputs) == {"a", "d"}


def test_groups_of_a_convolution_read_their_own_channels():
    network = Wired(lambda n, x: n.c(n.a(x)), a=nn.Conv2d(3, 4, 1), c=nn.Conv2d(4, 6, 1, groups=2))
    assert found(network)[1] == [("c", 0, [0, 1], [[0], [1]], None), ("c", 1, [2, 3], [[0], [1]], None)]


def test_a_channel_that_is_read_twice_has_both_columns():
    network = Wired(lambda n, x: n.c(torch.cat([n.a(x)] * 2, 1)), a=nn.Conv2d(3, 2, 1), c=nn.Conv2d(4, 6, 1))
    readers, consumers = found(network)
    assert consumers == [("c", 0, [0, 1], [[0, 2], [1, 3]], None)] or readers.obstacle


class Standardised(nn.Conv2d):
    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, weight, self.bias)


def after(wire, consumer=None, **layers):
    """A producer `a` of four channels, something between, and a consumer `c`."""
    return Wired(wire, a=nn.Conv2d(3, 4, 1), c=consumer or nn.Conv2d(4, 5, 1), **layers)


OBSTACLES = {
    "shuffled": (after(lambda n, x: n.c(n.s(n.a(x))), s=nn.ChannelShuffle(2)), "read by 'channel_shuffle' in 's'"),
    "across channels": (after(lambda n, x: n.c(n.s(n.a(x))), s=nn.LocalResponseNorm(3)), "mixed by 'avg_pool3d' in 's'"),
    "normalised together": (after(lambda n, x: n.c(functional.group_norm(n.a(x), 2))), "normalised together"),
    "combined": (after(lambda n, x: n.c((y := n.a(x)) + y.flip(1))), "'c' reads several of its channels in one"),
    "transposed": (after(lambda n, x: n.c(n.a(x)), nn.ConvTranspose2d(4, 5, 2)), "'c' reads it, a ConvTranspose2d"),
    "read elsewhere": (after(lambda n, x: n.c(y := n.a(x)) + y.mean(1, True)), "mixed by 'mean'"),
    "run again": (after(lambda n, x: n.c(n.c(n.a(x)).relu()).mean((1, 2, 3)), nn.Conv2d(4, 4, 1)), "mixed by 'mean'"),
    "run on other sizes": (
        after(lambda n, x: n.c(y := n.a(x)).mean() + n.c(functional.max_pool2d(y, 2)).mean()),
        "'c', which reads it, runs more than once",
    ),
    "standardised": (after(lambda n, x: n.c(n.a(x)), Standardised(4, 5, 1)), "read by 'convolution' in 'c' (Standardised)"),
    "parametrised": (
        after(lambda n, x: n.c(n.a(x)), parametrizations.weight_norm(nn.Conv2d(4, 5, 1))),
        "call torch.nn.utils.parametrize.remove_parametrizations on it first",
    ),
    "output": (after(lambda n, x: n.a(x)), "its channels are outputs of the network"),
    "unused": (after(lambda n, x: n.c(x.repeat(1, 2, 1, 1)[:, :4])), "it is not used"),
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_cannot_be_told_is_an_obstacle_in_words(kind):
    network, message = OBSTACLES[kind]
    readers, consumers = found(network)
    assert consumers == []
    assert message in readers.obstacle


def shared(*names):
    """Two layers behind two others that are one parameter."""
    first, second = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
    for name in names:
        setattr(second, name, getattr(first, name))
    return after(lambda n, x: n.c(n.a(x)) + n.d(n.b(x)), first, b=nn.Conv2d(3, 4, 1), d=second)


class Padding(nn.Conv2d):
    """Pads by itself, as PyTorch Image Models' convolutions of TensorFlow do."""

    def forward(self, images):
        return functional.conv2d(functional.pad(images, [0, 1, 0, 1]), self.weight, self.bias, self.stride)


class Wrapping(nn.Conv2d):
    """Gives a tuple."""

    def forward(self, images):
        return (super().forward(images),)


class Naming(nn.Conv2d):
    """Names its input in another way."""

    def forward(self, data):
        return super().forward(data)


def diverged():
    layer = nn.Conv2d(4, 5, 1)
    layer.weight.data[0] = torch.nan
    return layer


READERS = {
    "a weight of two layers": (shared("weight"), "'c', which reads it, shares 'd.weight'"),
    "a bias of two layers": (shared("bias"), "'c', which reads it, shares 'd.bias'"),
    "padding of its own": (after(lambda n, x: n.c(n.a(x)), Padding(4, 5, 3, 2)), "computes something else than weight"),
    "a tuple": (after(lambda n, x: n.c(n.a(x))[0], Wrapping(4, 5, 1)), "'c', which read it, cannot be followed"),
    "another name": (after(lambda n, x: n.c(data=n.a(x)), Naming(4, 5, 1)), "'c', which read it, cannot be followed"),
    "an image alone": (after(lambda n, x: n.c(n.a(x)[0])), "'c', which read it, cannot be followed"),
    "its weight alone": (
        after(lambda n, x: functional.conv2d(n.a(x), n.c.weight)),
        "'c', which reads it, is not called as a module",
    ),
    "NaN": (after(lambda n, x: n.c(n.a(x)), diverged()), "'c', which reads it, reads or gives NaN or infinity"),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_reader_that_cannot_be_treated_is_an_obstacle_in_words(kind):
    network, message = READERS[kind]
    readers, consumers = found(network)
    assert consumers == []
    assert message in readers.obstacle


@pytest.mark.parametrize(
    "wire",
    [
        lambda n, x: n.n(n.c(n.a(x))) + n.n(n.b(x)),  # it normalises another layer, too
        lambda n, x: (n.n(y := n.c(n.a(x))), y),  # what it normalises is an output, too
        lambda n, x: (n.n(y := n.c(n.a(x))), {"raw": [y[:, :2]]}),
        lambda n, x: n.n(y := n.c(n.a(x))) + y,
    ],
)
def test_a_batch_norm_that_others_see_takes_no_constant_up(wire):
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 5, 1), "c": nn.Conv2d(4, 5, 1, bias=False), "n": nn.BatchNorm2d(5)}
    ((*_, norm),) = found(Wired(wire, **layers))[1]
    assert norm is None
    ((*_, norm),) = found(Wired(lambda n, x: n.n(n.c(n.a(x))), **layers))[1]
    assert norm == "n"


def claimed(monkeypatch, channels, **inputs):
    """A graph that says by itself what reads each layer; `channels` of each."""
    said = {
        layer: module._Reads(np.arange(count), reads, {}, dict.fromkeys(reads))
        for (layer, reads), count in zip(inputs.items(), channels, strict=True)
    }
    monkeypatch.setattr(module, "_reads", lambda graph, layer: said[layer])


def test_channels_in_another_order_behind_a_flattened_map():
    network = after(lambda n, x: n.c(n.a(x).permute(0, 2, 3, 1).flatten(1)), nn.Linear(4 * 64, 2))
    ((name, group, channels, columns, norm),) = found(network)[1]
    assert (name, group, channels, norm) == ("c", 0, [0, 1, 2, 3], None)
    assert columns == [list(range(channel, 4 * 64, 4)) for channel in range(4)]


def straight(channels):
    return [(channel, channel) for channel in range(channels)]


ORDER = "'c' reads its channels in another order, or mixed"
UNTRUE = {
    "another order": (after(lambda n, x: n.c(n.s(n.a(x))), s=nn.ChannelShuffle(2)), straight(4), ORDER),
    "mixed": (after(lambda n, x: n.c(n.s(n.a(x))), s=nn.LocalResponseNorm(3)), straight(4), ORDER),
    "exchanged": (after(lambda n, x: n.c(n.a(x))), [(1, 0), (0, 1), (2, 2), (3, 3)], ORDER),
    "left out": (after(lambda n, x: n.c(n.a(x))), straight(3), ORDER),
    "read elsewhere": (
        after(lambda n, x: n.c(y := n.a(x)) + y.mean(1, True)),
        straight(4),
        "other parts of the network read it than 'c'",
    ),
    "run again": (
        after(lambda n, x: n.c(n.c(n.a(x)).relu()), nn.Conv2d(4, 4, 1)),
        straight(4),
        "'c', which reads it, runs more than once",
    ),
    "standardised": (
        after(lambda n, x: n.c(n.a(x)), Standardised(4, 5, 1)),
        straight(4),
        "'c', which reads it, computes something else than weight · inputs + bias",
    ),
    "parametrised": (
        after(lambda n, x: n.c(n.a(x)), parametrizations.weight_norm(nn.Conv2d(4, 5, 1))),
        straight(4),
        "take the parametrisation or weight norm off first",
    ),
}


@pytest.mark.parametrize("kind", UNTRUE)
def test_a_wrong_graph_is_not_believed(kind, monkeypatch):
    network, reads, message = UNTRUE[kind]
    claimed(monkeypatch, [4], a={"c": reads})
    assert message in (found(network)[0].obstacle or "")


def test_one_contradiction_leaves_other_layers_alone(monkeypatch):
    """All are tried in the same runs, and then by halves."""

    def wire(n, x):
        shuffled = n.c(n.s(n.a(x)).relu())
        return n.e(n.d(shuffled).relu()) + n.g(n.f(x)).relu()

    names = {"d": (5, 6), "e": (6, 4), "f": (3, 7), "g": (7, 4)}
    more = {name: nn.Conv2d(inputs, outputs, 1) for name, (inputs, outputs) in names.items()}
    network = after(wire, s=nn.ChannelShuffle(2), **more).eval()
    claimed(monkeypatch, [4, 5, 6, 7], a={"c": straight(4)}, c={"d": straight(5)}, d={"e": straight(6)}, f={"g": straight(7)})
    readers = find_consumers(network, ["a", "c", "d", "f"], torch.randn(1, 3, 8, 8))
    assert {layer: each.obstacle for layer, each in readers.items()} == {"a": ORDER, "c": None, "d": None, "f": None}
    assert [consumer.name for layer in "cdf" for consumer in readers[layer].consumers] == ["d", "e", "g"]


def test_slopes_are_those_of_the_batch_norm():
    norm = nn.BatchNorm2d(2)
    norm.running_var.copy_(torch.tensor([3.0, 8.0]))
    norm.weight.data.copy_(torch.tensor([-2.0, 6.0]))
    network = nn.ModuleDict({"n": norm, "free": nn.BatchNorm2d(2, affine=False)})
    torch.testing.assert_close(slopes(network, "n", 2), torch.tensor([4 / 3, 36 / 8]).double().sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(slopes(network, "free", 2), torch.ones(2).double(), rtol=1e-4, atol=0)
    assert slopes(network, None, 2).tolist() == [1, 1]


@pytest.mark.parametrize("key", ["weight", "running_var"])
def test_a_batch_norm_that_has_diverged_is_named(key):
    network = nn.ModuleDict({"n": nn.BatchNorm2d(2)})
    getattr(network["n"], key).data[1] = torch.nan
    with pytest.raises(ScapError, match="batch norm 'n' has weights or variances that are not finite"):
        slopes(network, "n", 2)


def test_an_unknown_layer_is_named():
    with pytest.raises(ScapError, match="layer 'nope' is no convolution"):
        found(Wired(lambda n, x: n.a(x), a=nn.Conv2d(3, 4, 1)), "nope")
