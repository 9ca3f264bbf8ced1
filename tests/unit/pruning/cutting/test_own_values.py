"""Surgery on networks whose own values, modes and random draws decide what they compute: right, or refused by name."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clock import stop_the_clock
from torch import nn
from wired import Wired

import scap
from scap.errors import ScapError
from scap.pruning.copies import copied, in_precision

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEPT = [0, 3, 5]


def zeroed(network, layer, images, kept=KEPT):
    """What the network gives where the other channels of a layer are zero."""
    mask = torch.zeros(network.get_submodule(layer).out_channels)
    mask[kept] = 1
    handle = network.get_submodule(layer).register_forward_hook(lambda module, given, out: out * mask[:, None, None])
    with torch.no_grad():
        found = network.eval()(images)
    handle.remove()
    return found


def conv(inputs, outputs, **settings):
    return nn.Conv2d(inputs, outputs, 1, **settings)


def in_either_order(net, x):
    first, second = F.relu(net.a(x)), F.relu(net.b(x))
    return net.h(torch.cat([first, second] if x.mean() < 0 else [second, first], 1))


def either_first(net, x):
    one, other = (net.a, net.b) if x.mean() > 0 else (net.b, net.a)
    return net.h(torch.cat([F.relu(one(x)), F.relu(other(x))], 1))


@pytest.mark.parametrize("wire", [in_either_order, either_first])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_way_of_the_same_operations_is_cut_right_or_refused(wire, sign):
    torch.manual_seed(0)
    network, images = Wired(wire, a=conv(3, 8), b=conv(3, 8), h=conv(16, 4)), sign * IMAGES
    try:
        pruned = scap.prune_network(network, {"a": KEPT}, images)
    except ScapError as error:
        assert "computes something else than the original" in str(error)  # noqa: PT017 # one of the two ways is refused
    else:
        torch.testing.assert_close(pruned(images), zeroed(network, "a", images))


def shrunk(net, x):
    y = net.a(x)
    y = y.sign() * F.relu(y.abs() - 10 * net.t.exp())
    return net.b(y / y.shape[1] ** 0.5)


def rooted(net, x):
    y = net.a(x) * (1 - net.t.square()).sqrt()
    return net.b(y / y.shape[1] ** 0.5)


@pytest.mark.parametrize(("wire", "value"), [(shrunk, -3.0), (rooted, 0.5)])
def test_random_weights_that_switch_a_part_off_prove_nothing(wire, value):
    """The cut depends on the number of channels; in the rehearsal the threshold is 5 at least, or the root is no number."""
    network = Wired(wire, a=conv(3, 8), b=conv(8, 4), t=nn.Parameter(torch.tensor(value)))
    with pytest.raises(ScapError, match=r"cut, 'b' .* computes something else than the original"):
        scap.prune_network(network, {"a": KEPT}, IMAGES)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_own_weights_that_tell_nothing_are_no_hindrance(value):
    """Fresh weights of zero, or a training that has diverged: the rehearsal decides."""
    network = Wired(lambda net, x: net.b(F.relu(net.a(x))), a=conv(3, 8), b=conv(8, 4))
    nn.init.constant_(network.a.weight, value)
    assert len(scap.prune_network(network, {"a": KEPT}, IMAGES).a.weight) == 3
    wrong = Wired(lambda net, x: net.b(net.a(x) / net.a(x).shape[1] ** 0.5), a=conv(3, 8), b=conv(8, 4))
    nn.init.constant_(wrong.a.weight, value)
    with pytest.raises(ScapError, match="computes something else"):
        scap.prune_network(wrong, {"a": KEPT}, IMAGES)


DRAWS = {
    "python": lambda: random.random(),
    "numpy": lambda: np.random.rand(),
    "torch": lambda: torch.rand(()).item(),
}


class StochasticDepth(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw, self.stem, self.head = draw, conv(3, 8), conv(8, 2)
        self.inner, self.outer = nn.ModuleList(conv(8, 6) for _ in range(4)), nn.ModuleList(conv(6, 8) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            if not self.training or self.draw() > 0.5:
                x = x + outer(F.relu(inner(x)))
        return self.head(x)


@pytest.mark.parametrize("draw", DRAWS)
def test_blocks_that_training_drops_by_chance_are_pruned_all_the_same(draw):
    network = StochasticDepth(DRAWS[draw])
    for seed in range(3):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        assert scap.prunable_layers(network, IMAGES) == [f"inner.{number}" for number in range(4)]
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])


def with_autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        return net.b(F.relu(net.a(x))).float()


@torch.autocast("cpu", torch.bfloat16)
def decorated(net, x):
    return net.b(F.relu(net.a(x))).float()


@torch.inference_mode()
def in_inference_mode(net, x):
    return net.b(F.relu(net.a(x)))


@pytest.mark.parametrize("wire", [with_autocast, decorated, in_inference_mode])
def test_modes_that_the_forward_switches_on_hide_no_layer(wire):
    torch.manual_seed(0)
    network = Wired(wire, a=conv(3, 8), b=conv(8, 4))
    expected = Wired(lambda net, x: net.b(F.relu(net.a(x))), a=network.a, b=network.b)
    for images in (IMAGES, torch.zeros(1, 3, 600, 600)):  # large images are rehearsed in float32
        assert scap.prunable_layers(network, images) == ["a"]
    scores = [scap.score_network(each, IMAGES, criterion="conditional")["score"] for each in (network, expected)]
    assert scores[0].equals(scores[1])
    pruned = [scap.prune_network(each, {"a": KEPT}, IMAGES, compensate="full").b.weight for each in (network, expected)]
    assert torch.equal(*pruned)
    dtype = network(IMAGES).dtype  # the modes work again
    with torch.autocast("cpu", torch.bfloat16):
        assert F.conv2d(IMAGES, network.a.weight).dtype == torch.bfloat16
    assert dtype == torch.float32


class KeptElsewhere(nn.Conv2d):
    """A convolution whose kernel has another name."""

    def __init__(self, inputs, outputs, keep):
        super().__init__(inputs, outputs, 1)
        self.kernels = nn.Parameter(self.weight.detach().clone())
        del self.weight
        if keep:
            self.register_parameter("weight", None)

    def forward(self, x):
        return F.conv2d(x, self.kernels, self.bias)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("coupled", [False, True])
def test_a_layer_without_a_weight_of_this_name_is_none(keep, coupled):
    torch.manual_seed(0)
    network = nn.Sequential(conv(3, 8), nn.ReLU(), KeptElsewhere(8, 6, keep), nn.ReLU(), conv(6, 6), nn.ReLU(), conv(6, 2))
    assert scap.prunable_layers(network, IMAGES, coupled=coupled) == ["0", "4"]
    assert set(scap.score_network(network, IMAGES, criterion="l1", coupled=coupled)["layer"]) == {"0", "4"}
    with pytest.raises(ScapError, match=r"layer '2' is no .* \(it is a KeptElsewhere without a 'weight'\)"):
        scap.prune_network(network, {"2": [0]}, IMAGES, coupled=coupled)
    torch.testing.assert_close(scap.prune_network(network, {"0": KEPT}, IMAGES)(IMAGES), zeroed_before(network, "0"))


def zeroed_before(network, layer):
    """As `zeroed`, for a layer whose bias goes with it."""
    return zeroed(network, layer, IMAGES)


def clipped(net, x):
    y = net.a(x)
    return net.b(torch.where(y < 1, y, torch.ones_like(y)))


def noisy(net, x):
    y = net.a(x)
    return net.b(y + torch.poisson(torch.ones_like(y)))


def log_noisy(net, x):
    y = net.a(x)
    return net.b(y + torch.empty_like(y).log_normal_())


@pytest.mark.parametrize("wire", [clipped, noisy, log_noisy])
def test_what_hides_a_mark_or_draws_is_followed(wire):
    assert scap.prunable_layers(Wired(wire, a=conv(3, 8), b=conv(8, 4)), IMAGES) == ["a"]


def test_a_tied_weight_is_named():
    first, second = conv(8, 8), conv(8, 8)
    second.weight = first.weight
    reasons = scap.explain(nn.Sequential(conv(3, 8), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), conv(8, 2)), IMAGES)
    assert reasons.set_index("layer")["reason"]["4"] == "it shares its weight with '2'"


@pytest.mark.parametrize("part", [nn.Linear(8, 0), nn.ParameterList([torch.empty(3, 0), torch.empty(0)])])
def test_empty_weights_are_no_hindrance(part):
    network = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(part) if isinstance(part, nn.Linear) else setattr(network[0], "more", part)
    assert "0" in scap.prunable_layers(network, IMAGES)


class Silent(nn.Module):
    """Its `train` gives nothing back, as that of many detectors."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = conv(3, 8), nn.BatchNorm2d(8), conv(8, 4)

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x)))).mean((2, 3))

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()


def test_a_train_of_its_own_need_not_return_the_network(tmp_path, monkeypatch):
    network, settings = Silent(), scap.TrainingSettings(epochs=1, batch_size=2, learning_rate=0.01)
    assert scap.prunable_layers(network, IMAGES) == ["a"]
    for criterion in (None, "conditional"):
        table = scap.score_network(network, IMAGES, criterion=criterion)
    assert scap.count_operations(network, IMAGES)["params"] > 0
    stop_the_clock(monkeypatch)
    assert scap.measure_latency(network, IMAGES, repeats=1)
    pruned = scap.prune_network(network, scap.plan_for(table, network, IMAGES, macs=0.5), IMAGES, compensate="full")
    rounds, _ = scap.prune_in_rounds(network, IMAGES, 2, macs=0.5, criterion="conditional")
    scap.save_network(tmp_path / "pruned", pruned, example_shape=IMAGES.shape)
    loaded = scap.load_network(tmp_path / "pruned", build=Silent)
    torch.testing.assert_close(loaded(IMAGES), pruned.to(torch.float32)(IMAGES))
    history = scap.finetune(loaded, (IMAGES, torch.zeros(4, dtype=torch.long)), settings, evaluate=lambda each: {"out": 1.0})
    assert len(history) == 1
    assert rounds(IMAGES).shape == (4, 4)


def averages_by_assignment(net, x):
    net.mean = 0.9 * net.mean + 0.1 * x.mean((0, 2, 3))


def averages_in_place(net, x):
    net.mean.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)


@pytest.mark.parametrize("keep", [averages_by_assignment, averages_in_place])
def test_what_a_forward_keeps_of_one_trial_spoils_no_other(keep):
    """Its buffers, in which a removed channel's mark would stay: a layer that fails takes no other with it."""

    def wire(net, x):
        hidden = F.relu(net.a(x))
        keep(net, hidden)
        hidden = net.b(hidden * (1 + net.mean[:, None, None])).reshape(-1, 6, 8, 8)  # the number of channels is written down
        return net.h(F.relu(net.c(hidden)))

    network = Wired(wire, a=conv(3, 6), b=conv(6, 6), c=conv(6, 6), h=conv(6, 2))
    network.register_buffer("mean", torch.zeros(6))
    table = scap.explain(network, IMAGES[:1]).set_index("layer")
    assert table.prunable.to_dict() == {"a": True, "b": False, "c": True, "h": False}
    assert "shape '[-1, 6, 8, 8]' is invalid" in table.reason["b"]


def filtered(net, x):
    x = torch.fft.irfft2(torch.fft.rfft2(x) * net.filter, s=x.shape[2:])
    return net.h(F.relu(net.a(x)))


def turned(net, x):
    x = torch.view_as_real(x.to(net.filter.dtype)[..., :5] * net.filter).flatten(3)
    return net.h(F.relu(net.a(x)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wire", [filtered, turned])
def test_complex_values_keep_their_imaginary_parts(wire):
    network = Wired(wire, a=conv(3, 6), h=conv(6, 2), filter=nn.Parameter(torch.randn(3, 8, 5, dtype=torch.complex64)))
    assert scap.prunable_layers(network, IMAGES) == ["a"]
    pruned = scap.prune_network(network, {"a": KEPT}, IMAGES)
    torch.testing.assert_close(pruned(IMAGES), zeroed(network, "a", IMAGES))
    for dtype, pair in ((torch.float64, torch.complex128), (None, torch.complex64)):
        precise = in_precision(copied(network), dtype)
        assert precise.filter.dtype == pair
        assert torch.equal(precise.filter.to(torch.complex64), network.filter)
