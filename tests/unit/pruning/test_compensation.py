"""Compensation: its laws, on chains, residual blocks, concatenations and depthwise layers; and what it says of itself."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from wired import Wired

import scap
from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning.compensation import COMPENSATIONS, compensate, prune_and_compensate
from scap.pruning.next_layers.consumers import slopes
from scap.pruning.surgery import cut_network, prunable_layers

HELPING = [how for how in COMPENSATIONS if how != "none"]


def settled(network, images):
    """In float64 and evaluation mode, with batch norms that matter."""
    network = network.double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = None
    with torch.no_grad():
        network.train()(images)
    return network.eval()


class Chain(nn.Module):
    """Convolutions with or without biases and batch norms, and a linear head that reads single pixels."""

    def __init__(self, bias=True, norm=True, channels=6):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 5, 3, 2, 1, bias=bias)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.head = nn.Linear(5 * 9, 4, bias=bias)

    def forward(self, images):
        hidden = self.norm(self.second(self.first(images).relu())).relu()
        return self.head(hidden.flatten(1))


class Blocks(nn.Module):
    """A residual block, a concatenation of two producers, and a producer that two layers read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner, self.outer, self.norm = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 3, padding=1)
        self.deeper, self.joined, self.head = nn.Conv2d(6, 3, 3, padding=1), nn.Conv2d(13, 7, 1), nn.Linear(7, 3)

    def forward(self, images):
        hidden = self.stem(images).relu()
        hidden = hidden + self.norm(self.outer(self.inner(hidden).relu()))
        left, right = self.left(hidden).relu(), self.right(hidden).relu()
        return self.head(self.joined(torch.cat([left, self.deeper(left), right], 1)).relu().mean((2, 3)))


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise: an inverted bottleneck."""

    def __init__(self):
        super().__init__()
        self.expand, self.depth, self.project = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 5, 1)

    def forward(self, images):
        return self.project(functional.relu6(self.depth(self.expand(images).relu()))).mean((2, 3))


def images_for(count=80, size=6, seed=0):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chain(**options):
    torch.manual_seed(0)
    images = images_for()
    return settled(Chain(**options), images), images


@torch.no_grad()
def measured(pruned, network, name, images):
    """Squared error of a layer's outputs over their energy without bias, both as the batch norm behind scales them."""
    outputs = []
    for each in (pruned, network):
        handle = each.get_submodule(name).register_forward_hook(lambda module, args, output: outputs.append(output))
        each(images)
        handle.remove()
    scale = slopes(network, "norm" if name == "outer" else None, outputs[0].shape[1])
    error, energy = outputs[0] - outputs[1], outputs[1].movedim(1, -1) - network.get_submodule(name).bias
    return float((error.movedim(1, -1) * scale).square().sum() / (energy * scale).square().sum())


@pytest.mark.parametrize("how", COMPENSATIONS)
def test_a_plan_that_keeps_all_leaves_outputs_bit_equal(how):
    for network, images in (chain(), (settled(Blocks(), images_for()), images_for())):
        plan = {name: list(range(network.get_submodule(name).out_channels)) for name in prunable_layers(network, images[:1])}
        pruned, table = prune_and_compensate(network, plan, images, how)
        assert torch.equal(pruned(images), network(images))
        assert len(table) == 0


@torch.no_grad()
def make_combination(network, layer, channel, shares, constant):
    """Channel `channel` of a linear layer in front of a consumer becomes a combination of others and a constant."""
    module = network.get_submodule(layer)
    module.weight[channel] = sum(share * module.weight[other] for other, share in shares.items())
    module.bias[channel] = sum(share * module.bias[other] for other, share in shares.items()) + constant


class Linear(nn.Module):
    """Without an activation between producer and consumer, combinations of filters are combinations of channels."""

    def __init__(self, kernel, norm, bias):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, kernel, bias=bias)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.norm(self.second(self.first(images))).relu().mean((2, 3)))


@pytest.mark.parametrize("how", ["channelwise", "full"])
@pytest.mark.parametrize(("kernel", "norm", "bias"), [(3, True, False), (1, True, True), (3, False, True), (3, False, False)])
def test_an_exact_combination_is_replaced_exactly(how, kernel, norm, bias):
    torch.manual_seed(1)
    images = images_for()
    network = settled(Linear(kernel, norm, bias), images)
    with torch.no_grad():
        nn.init.orthogonal_(network.first.weight)
    make_combination(network, "first", 2, {0: 0.7, 5: -1.5}, constant=0.8)
    make_combination(network, "first", 3, {4: 1.0}, constant=0)
    plan = {"first": [0, 1, 4, 5]}
    fresh = images_for(seed=9)
    wanted = network(fresh)
    assert (cut_network(network, plan, images[:1])(fresh) - wanted).abs().max() > 1e-2
    pruned, _ = prune_and_compensate(network, plan, images, how)
    if how == "channelwise" and norm:  # its batch norms are estimated on the images
        network.norm.momentum = None
        network.norm.reset_running_stats()
        network.norm.train()
        network(images)
        wanted = network.eval()(fresh)
    assert (pruned(fresh) - wanted).abs().max() < 1e-5


def test_a_copy_behind_an_activation_is_replaced_exactly_in_float32():
    network, images = chain(channels=12)
    with torch.no_grad():
        network.first.weight[7], network.first.bias[7] = 2 * network.first.weight[3], 2 * network.first.bias[3]
    network, images = network.float(), images.float()
    pruned, _ = prune_and_compensate(network, {"first": [k for k in range(12) if k != 7]}, images)
    torch.testing.assert_close(pruned(images), network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [1, 100, 10_000])
def test_means_that_dwarf_the_variances_cost_few_digits_in_float32(mean):
    """Without batch norms a channel may be 10,000 +- 1: six channels, mixed from three, stand for all sixteen."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(512, 4)).eval()
    nn.init.constant_(network[0].bias, mean)
    images = torch.randn(32, 3, 8, 8)
    pruned, _ = prune_and_compensate(network, {"0": [0, 1, 2, 5, 7, 9]}, images)
    with torch.no_grad():
        wanted, given = network(images), pruned(images)
    assert (given - wanted).norm() < 1e-2 * (wanted - wanted.mean(0)).norm()


def test_inputs_that_cannot_be_told_apart_are_said():
    network, images = chain()
    with torch.no_grad():
        network.first.weight[1], network.first.bias[1] = network.first.weight[0], network.first.bias[0]
    with pytest.raises(ScapError, match="layer 'second': the inputs that stay cannot be told apart; raise `ridge`"):
        prune_and_compensate(network, {"first": [0, 1]}, images, ridge=1e-300)


@pytest.mark.parametrize(
    ("how", "seed", "count"), [("full", 0, 6), ("channelwise", 1, 12), ("full", 2, 40), ("channelwise", 3, 80)]
)
def test_the_consumers_calibration_error_never_rises_and_is_the_reported_one(how, seed, count):
    """Also with few images, and layer after layer."""
    torch.manual_seed(seed)
    images = images_for(count, seed=seed)
    network = settled(Blocks(), images)
    # Not `stem` and `outer`, which the residual stream couples.
    layers = ["inner", "left", "right", "deeper"]
    for layer in layers:
        channels = network.get_submodule(layer).out_channels
        plan = {layer: sorted(torch.randperm(channels)[: max(1, channels // 2)].tolist())}
        cut = cut_network(network, plan, images[:1])
        pruned, table = prune_and_compensate(network, plan, images, how, batch_size=32)
        rows = table[table["done"] == how]
        assert set(rows["consumer"]) == {"inner": {"outer"}, "left": {"deeper", "joined"}}.get(layer, {"joined"})
        for row in rows.itertuples():
            assert row.error_after <= row.error_before
            if row.consumer != "joined" or layer != "left":  # there `deeper` is treated first
                assert row.error_before == pytest.approx(measured(cut, network, row.consumer, images), rel=1e-6)
            if how == "full":
                assert row.error_after == pytest.approx(measured(pruned, network, row.consumer, images), rel=1e-6, abs=1e-12)
    plan = {layer: [0, 2] for layer in layers}
    _, table = prune_and_compensate(network, plan, images, how)
    done = table[table["done"] == how]
    assert done["consumer"].tolist() == ["outer", "deeper", "joined"]
    assert (done["error_after"] <= done["error_before"]).all()
    assert done["layers"].tolist() == ["inner", "left", "left, right, deeper"]


@pytest.mark.parametrize("how", ["channelwise", "full"])
@pytest.mark.parametrize("ridge", [1.0, 30.0, 1e3])
def test_a_ridge_that_is_far_too_large_is_no_worse_than_the_plain_cut(how, ridge):
    """It would shrink the weights of the channels that stay, too (docs/conditional.md, equation C8)."""
    network, images = chain()
    _, table = prune_and_compensate(network, {"first": [0, 2, 3]}, images, how, ridge=ridge)
    rows = table[table["done"] == how]
    assert len(rows) == 1
    assert (rows["error_after"] <= rows["error_before"] * (1 + 1e-9)).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_constants_find_a_place(bias, norm):
    """A channel that is constant is worth a constant: in the bias, the batch norm's mean, or a bias that is created."""
    network, images = chain(bias=bias, norm=norm)
    with torch.no_grad():
        network.first.weight[4] = 0
        network.first.bias[4] = 3
    network.second.padding, network.head = (0, 0), nn.Linear(5 * 4, 4).double()  # zeros of the padding are not constant
    pruned, table = prune_and_compensate(network, {"first": [0, 1, 2, 3, 5]}, images)
    assert (pruned(images) - network(images)).abs().max() < 1e-9
    assert (pruned.second.bias is not None) == (bias or not norm)
    assert table["note"].tolist() == ["" if bias or norm else "a bias was created"]
    assert set(pruned.state_dict()) - set(network.state_dict()) == (set() if bias or norm else {"second.bias"})


@pytest.mark.parametrize(
    "wire",
    [
        lambda n, x: n.n(n.c(n.a(x).relu())) + n.n(n.b(x)),
        lambda n, x: (n.n(y := n.c(n.a(x).relu())), y),
    ],
)
def test_a_constant_leaves_alone_what_does_not_read_the_cut(wire):
    """It goes into a new bias where the batch norm also serves others."""
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 5, 3), "c": nn.Conv2d(4, 5, 1, bias=False), "n": nn.BatchNorm2d(5)}
    torch.manual_seed(0)
    network, images = Wired(wire, **layers).double().eval(), images_for()
    with torch.no_grad():
        network.a.weight[3], network.a.bias[3] = 0, 3  # worth a constant
    pruned, table = prune_and_compensate(network, {"a": [0, 1, 2]}, images)
    before, after = network(images), pruned(images)
    assert table["note"].tolist() == ["a bias was created"]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    assert torch.equal(pruned.n.running_mean, network.n.running_mean)


def test_a_new_bias_is_as_frozen_as_its_weight():
    network, images = chain(bias=False, norm=False)
    with torch.inference_mode():
        pruned = prune_and_compensate(network.requires_grad_(False), {"first": [0, 1, 2]}, images)[0]
    assert not pruned.second.bias.requires_grad
    assert not pruned.second.bias.is_inference()
    assert prune_and_compensate(network.requires_grad_(True), {"first": [0, 1, 2]}, images)[0].second.bias.requires_grad


def test_full_is_at_least_as_good_as_channelwise_and_both_help():
    network, images = chain(channels=12)
    plan = {"first": [0, 2, 3, 7], "second": [0, 1, 4]}
    errors = {
        how: (prune_and_compensate(network, plan, images, how)[0](images) - network(images)).square().mean().item()
        for how in COMPENSATIONS
    }
    assert errors["full"] < errors["channelwise"] < errors["none"]


def test_none_is_the_plain_cut():
    network, images = chain()
    pruned, table = prune_and_compensate(network, {"first": [0, 3]}, images, "none")
    assert torch.equal(pruned(images), cut_network(network, {"first": [0, 3]}, images[:1])(images))
    assert table.empty


def test_batch_norm_estimates_what_changed_only():
    torch.manual_seed(0)
    images = images_for(65)
    network = settled(build_network("resnet20", width=0.25), images)
    pruned, table = prune_and_compensate(network, {"layer2.0.conv1": [0, 3, 5]}, images, "batch-norm", batch_size=32)
    untouched = [name for name, _ in network.named_buffers() if name.startswith(("bn1", "layer1"))]
    assert untouched
    assert all(torch.equal(network.get_buffer(name), pruned.get_buffer(name)) for name in untouched)
    assert table["consumer"].iloc[0] == "layer2.0.bn1"
    assert {"layer2.0.bn2", "layer2.1.bn1", "layer3.2.bn2"} <= set(table["consumer"])
    inputs, norm = [], pruned.layer2[0].bn2
    norm.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    pruned(images)
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)), rtol=0.05, atol=0.05)
    assert norm.momentum == network.layer2[0].bn2.momentum
    assert not any(module.training for module in pruned.modules())


def test_a_batch_norm_that_runs_twice_is_estimated_where_one_of_its_inputs_changed():
    """And however its input is handed over."""
    layers = {"a": nn.Conv2d(3, 5, 3), "b": nn.Conv2d(3, 4, 3), "c": nn.Conv2d(5, 4, 1), "n": nn.BatchNorm2d(4)}
    network, images = Wired(lambda n, x: n.n(input=n.c(n.a(x).relu())) + n.n(n.b(x)), **layers).eval(), images_for().float()
    _, table = prune_and_compensate(network, {"a": [0, 1]}, images, "batch-norm")
    assert table["consumer"].tolist() == ["n"]


def test_depthwise_layers_pass_channels_on():
    """The cut is made by hand, since today's surgery leaves coupled channels alone."""
    torch.manual_seed(0)
    images = images_for()
    network = Depthwise().double().eval()
    with torch.no_grad():
        for layer in (network.expand, network.depth):
            layer.weight[5], layer.bias[5] = layer.weight[1], layer.bias[1]
    kept = [0, 1, 2, 3, 4, 6, 7]
    pruned = copy.deepcopy(network)
    pruned.expand, pruned.depth = nn.Conv2d(3, 7, 1).double(), nn.Conv2d(7, 7, 3, groups=7).double()
    pruned.project = nn.Conv2d(7, 5, 1).double()
    with torch.no_grad():
        for name in ("expand", "depth", "project"):
            old, new = network.get_submodule(name), pruned.get_submodule(name)
            new.weight.copy_(old.weight[:, kept] if name == "project" else old.weight[kept])
            new.bias.copy_(old.bias if name == "project" else old.bias[kept])
    table = compensate(network, pruned, {"expand": kept}, images)
    assert table["consumer"].tolist() == ["project"]
    torch.testing.assert_close(pruned(images), network(images), rtol=0, atol=1e-6)


class Upsampling(nn.Module):
    """A transposed convolution reads one producer, a plain one the other."""

    def __init__(self):
        super().__init__()
        self.low, self.up, self.plain, self.last = (
            nn.Conv2d(3, 4, 1),
            nn.ConvTranspose2d(4, 3, 2, 2),
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, images):
        return self.last(self.plain(self.up(self.low(images).relu())).relu())


def test_what_cannot_be_compensated_is_said():
    torch.manual_seed(0)
    network, images = Upsampling().double().eval(), images_for()
    pruned, table = prune_and_compensate(network, {"low": [0, 2], "plain": [0, 1, 2]}, images)
    assert table["done"].tolist() == ["none", "full"]
    assert table["layers"].tolist() == ["low", "plain"]
    assert table["note"].tolist() == ["'up' reads it, a ConvTranspose2d", ""]
    assert (pruned(images) - network(images)).abs().max() > 0


def test_a_reader_of_two_producers_stays_where_one_of_them_cannot_be_followed():
    layers = {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(3, 5, 3), "c": nn.Conv2d(11, 4, 1), "d": nn.ConvTranspose2d(5, 3, 2, 2)}
    torch.manual_seed(0)
    network = Wired(lambda n, x: (n.c(torch.cat([y := n.b(x).relu(), n.a(x).relu()], 1)), n.d(y)), **layers).eval()
    images = images_for().float()
    _, table = prune_and_compensate(network, {"a": [0, 1], "b": [0, 1]}, images)
    notes = ["'d' reads it, a ConvTranspose2d", "it reads channels of 'b', too, whose readers cannot be told"]
    assert table[["done", "note"]].values.tolist() == [["none", note] for note in notes]
    _, table = prune_and_compensate(network, {"a": [0, 1]}, images)  # nothing of `b` is gone
    assert table[["consumer", "done"]].values.tolist() == [["c", "full"]]


class Auxiliary(nn.Module):
    """A second head that only training runs."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
        self.aside, self.second = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, images):
        read = self.a(images).relu()
        return (self.head(read), self.second(self.aside(read))) if self.training else self.head(read)


@pytest.mark.parametrize("how", HELPING)
def test_layers_that_only_training_runs_are_cut_plainly(how):
    torch.manual_seed(0)
    pruned, table = prune_and_compensate(Auxiliary(), {"a": [0, 2, 5], "aside": [1]}, images_for().float(), how)
    assert pruned.second.in_channels == 1
    assert pruned.train()(images_for().float())[1].shape[1] == 2
    if how != "batch-norm":
        assert "it is not used when the network runs" in table["note"].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", HELPING)
def test_images_are_given_in_the_precision_of_the_network(how, dtype):
    network, images = chain()
    network.register_parameter("number", nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False))
    pruned, table = prune_and_compensate(network.to(dtype), {"first": [0, 1, 2]}, images.float(), how)
    assert pruned.second.weight.dtype == dtype
    assert how in table["done"].tolist()


def test_too_few_images_and_too_many_inputs_are_said(monkeypatch):
    network, images = chain(channels=40)
    plan = {"first": list(range(30))}
    assert "36 samples for 270 inputs: use more images" in prune_and_compensate(network, plan, images[:4])[1]["note"].iloc[0]
    with pytest.warns(UserWarning, match="compensated from few images: 'second': 36 samples for 270 inputs: use more images"):
        scap.prune_network(network, plan, images[:4], compensate="full")
    monkeypatch.setattr("scap.pruning.compensation.LARGEST", 200)
    pruned, table = prune_and_compensate(network, plan, images)
    assert table["done"].tolist() == ["none"]
    assert "it keeps 270 inputs, more than the 200 that are solved" in table["note"].iloc[0]
    assert torch.equal(pruned(images), cut_network(network, plan, images[:1])(images))


def test_memory_is_bounded_by_several_passes(monkeypatch):
    """The same result, whether the original's outputs are gathered at once or consumer by consumer."""
    network, images = chain()
    plan = {"first": [0, 2, 3], "second": [0, 1, 4]}
    at_once, _ = prune_and_compensate(network, plan, images)
    monkeypatch.setattr("scap.pruning.compensation.MEMORY", 1)
    told = []
    one_by_one, _ = prune_and_compensate(network, plan, images, report=told.append)
    assert torch.equal(at_once(images), one_by_one(images))
    assert told == [{"layer": 1, "total": 2}, {"layer": 2, "total": 2}]


def test_the_original_is_left_alone_and_no_hook_stays():
    network, images = chain()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pruned, _ = prune_and_compensate(network, {"first": [0, 3]}, images, "channelwise")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not pruned.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*network.modules(), *pruned.modules()))


def replaced(images, value):
    images = images.clone()
    images[3, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("how", "change", "message"),
    [
        ("all", lambda x: x, "compensate: 'all' is unknown; choose from none, batch-norm, channelwise, full"),
        *[(how, lambda x: replaced(x, torch.nan), "images: they hold NaN or infinity") for how in HELPING],
        *[(how, lambda x: x[:1], "at least 2 calibration images") for how in HELPING],
    ],
)
def test_mistakes_are_named(how, change, message):
    network, images = chain()
    with pytest.raises(ScapError, match=message):
        prune_and_compensate(network, {"first": [0, 3]}, change(images), how)


@pytest.mark.parametrize("how", ["channelwise", "full"])
def test_a_larger_ridge_keeps_the_weights_smaller(how):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 3)).eval()
    with torch.no_grad():  # all but collinear: what replaces a channel is differences of large weights
        network[0].weight[4:] = network[0].weight[:4].repeat(2, 1, 1, 1) + 1e-3 * torch.randn(8, 3, 3, 3)
    images = torch.rand(32, 3, 8, 8)
    pruned = [prune_and_compensate(network, {"0": list(range(6))}, images, how, ridge=ridge)[0] for ridge in (1e-4, 1e-2, 1e-1)]
    norms = [float(each[1].weight.detach().norm()) for each in pruned]
    assert norms[0] > 1.01 * norms[1] > 1.01**2 * norms[2]


@pytest.mark.parametrize("ridge", [0, -1.0, float("nan"), float("inf"), 1e300, 10**400, True, "0.1", None, [0.1], 1j])
def test_a_ridge_that_is_none_is_refused(ridge):
    network, images = chain()
    with pytest.raises(ScapError, match="ridge is"):
        prune_and_compensate(network, {"first": [0, 3]}, images, ridge=ridge)


def test_activations_that_are_not_finite_name_their_layer():
    network, images = chain()
    images = images.float()
    images[-1] *= 1e25
    with pytest.raises(ScapError, match="layer 'second' reads NaN, infinity or values too large for float32"):
        prune_and_compensate(network.float(), {"first": [0, 3]}, images)


@pytest.mark.parametrize("how", ["channelwise", "full"])
def test_activations_whose_squares_are_lost_name_their_layer(how):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)).double()
    images, plan = images_for(), {"0": [0, 3]}
    expected = prune_and_compensate(network, plan, images, how=how)[0](images)
    found = prune_and_compensate(network, plan, images * 1e-25, how=how)[0](images * 1e-25) * 1e25
    torch.testing.assert_close(found, expected)
    with pytest.raises(
        ScapError, match=r"^layer '2' reads values too small for float32 on the calibration images: scale them$"
    ):
        prune_and_compensate(network.float(), plan, images.float() * 1e-25, how=how)
    prune_and_compensate(network.float(), plan, images.float() * 0, how=how)


def test_a_network_that_was_not_cut_by_the_plan_is_refused():
    network, images = chain()
    other = cut_network(network, {"first": [0, 4]}, images[:1])
    with pytest.raises(ScapError, match="layer 'second' of the pruned network does not hold the weights that the plan keeps"):
        compensate(network, other, {"first": [0, 3]}, images)
