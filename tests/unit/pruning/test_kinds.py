"""Every kind of network that surgery met: what it can cut is law 8 to the letter, what it cannot has a true reason."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from wired import Wired

import scap
from scap.errors import ScapError
from scap.pruning.cutting.check import relative_difference
from scap.pruning.surgery import cut_network, explain, prunable_layers


class Frozen(nn.Module):
    """A batch norm of buffers alone, as detection networks have them."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, images):
        weight, bias, mean, var = (
            getattr(self, n).view(1, -1, 1, 1) for n in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight * (var + 1e-5).rsqrt()
        return images * scale + (bias - mean * scale)


class ChannelsLast(nn.LayerNorm):
    def forward(self, images):
        return super().forward(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv(inputs, outputs, size=1, **arguments):
    return nn.Conv2d(inputs, outputs, size, **arguments)


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def gated(n, x):
    hidden = n.a(x)
    return n.c(hidden * n.gate(hidden).sigmoid())


def excited(n, x):
    hidden = n.a(x)
    return n.c(hidden * n.up(n.down(hidden.mean((2, 3), keepdim=True)).relu()).sigmoid())


def written(n, x):
    room = x.new_zeros(len(x), 8, *x.shape[2:])
    room[:, :4], room[:, 4:] = n.a(x), n.b(x)
    return n.c(room)


def hand_written_norm(n, x):
    hidden = n.a(x)
    return n.c(hidden / (hidden.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())


def tail(n, x):
    return n.c(n.between(n.a(x)))


def between(module, outputs=8, inputs=8, last=None):
    """A producer `a`, something between, and a consumer `c`."""
    return Wired(tail, a=conv(3, outputs), between=module, c=last or conv(inputs, 2))


def wired(wire, outputs=8, inputs=8, **layers):
    return Wired(wire, a=conv(3, outputs), **{"c": conv(inputs, 2)} | layers)


CUT = {
    "flattened": wired(lambda n, x: n.c(n.a(x).relu().flatten(1)), c=nn.Linear(8 * 64, 2)),
    "flattened in another order": wired(lambda n, x: n.c(n.a(x).permute(0, 2, 3, 1).flatten(1)), c=nn.Linear(8 * 64, 2)),
    "tokens": wired(lambda n, x: n.c(n.a(x).flatten(2).mT).mean(1), c=nn.Linear(8, 2)),
    "tokens without a bias": wired(lambda n, x: n.c(n.a(x).flatten(2).mT).mean(1), c=nn.Linear(8, 2, bias=False)),
    "buffers of a frozen norm": between(Frozen(8)),
    "instance norm": between(nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.PReLU(8))),
    "repeated": wired(lambda n, x: n.c(n.a(x).repeat(1, 3, 1, 1)), inputs=24),
    "unfolded": wired(lambda n, x: n.c(F.unfold(n.a(x), 3).mean(2)), c=nn.Linear(72, 2)),
    "pixels unshuffled": wired(lambda n, x: n.c(F.pixel_unshuffle(n.a(x), 2)), inputs=32),
    "normalised over space": wired(lambda n, x: n.c(F.layer_norm(n.a(x), (8, 8)))),
    "positions": wired(lambda n, x: n.c(n.a(x) + n.positions), positions=nn.Parameter(torch.randn(1, 8, 8, 8))),
    "transposed reader": wired(lambda n, x: n.c(n.a(x)), c=nn.ConvTranspose2d(8, 5, 2)),
    "read twice": wired(lambda n, x: n.c(n.a(x)) + n.c(n.a(x.flip(3)))),
    "padded and resized": wired(lambda n, x: n.c(F.interpolate(F.pad(n.a(x), (1, 1, 1, 1), mode="reflect"), scale_factor=2))),
    "circular padding": wired(tail, between=nn.ReLU(), c=conv(8, 2, 3, padding=1, padding_mode="circular")),
    "activation that compares": wired(lambda n, x: n.c(torch.where((y := n.a(x)) > 0, y, torch.full_like(y, -1.0)))),
    "pixels": wired(lambda n, x: n.c(n.a(x).permute(0, 2, 3, 1)), c=nn.Linear(8, 2)),
    "beside fixed channels": wired(lambda n, x: n.c(torch.cat([n.a(x), torch.ones_like(x)], 1)), inputs=11),
}
LEFT = {
    "shuffled by a module": (between(nn.ChannelShuffle(2)), "'channel_shuffle' in 'between' (ChannelShuffle)"),
    "shuffled by hand": (wired(lambda n, x: n.c(shuffle(n.a(x)))), "arranged in groups by 'view'"),
    "pixel shuffle": (between(nn.PixelShuffle(2), inputs=2), "'pixel_shuffle' in 'between'"),
    "gated linear unit": (wired(lambda n, x: n.c(F.glu(n.a(x), 1)), inputs=4), "'glu'"),
    "group norm": (wired(lambda n, x: n.c(F.group_norm(n.a(x), 2))), "normalised together"),
    "layer norm": (wired(lambda n, x: n.c(F.layer_norm(n.a(x), (8, 8, 8)))), "normalised together"),
    "layer norm of channels": (
        between(ChannelsLast(8)),
        "normalised together by 'native_layer_norm' in 'between' (ChannelsLast)",
    ),
    "softmax": (between(nn.Softmax2d()), "'softmax' in 'between'"),
    "local response": (between(nn.LocalResponseNorm(3)), "in 'between' (LocalResponseNorm)"),
    "hand-written norm": (wired(hand_written_norm), "mixed by 'mean'"),
    "unit length": (wired(lambda n, x: n.c(F.normalize(n.a(x)))), "mixed by 'linalg_vector_norm'"),
    "chunks": (wired(lambda n, x: n.c(torch.mul(*n.a(x).chunk(2, 1))), inputs=4), "taken apart by their positions by 'split'"),
    "split": (wired(lambda n, x: n.c(n.a(x).split([2, 6], 1)[1]), inputs=6), "taken apart by their positions"),
    "slice": (wired(lambda n, x: n.c(n.a(x)[:, :5]), inputs=5), "taken apart by their positions by 'slice'"),
    "attention": (wired(lambda n, x: n.c((y := n.a(x)) * y.mean(1, keepdim=True).sigmoid())), "mixed by 'mean'"),
    "product of maps": (wired(lambda n, x: ((y := n.a(x).flatten(2)) @ y.mT).flatten(1)), "read by 'bmm'"),
    "einsum": (
        wired(lambda n, x: torch.einsum("bchw,oc->bohw", n.a(x), n.w), w=nn.Parameter(torch.ones(2, 8))),
        "multiplied by 'w' in 'bmm'",
    ),
    "recurrent": (wired(lambda n, x: n.c(n.a(x).flatten(2).mT)[0], c=nn.LSTM(8, 4)), "in 'c' (LSTM)"),
    "heads": (
        wired(lambda n, x: n.c(*[n.a(x).flatten(2).mT] * 3)[0], c=nn.MultiheadAttention(8, 2)),
        "in 'c' (MultiheadAttention)",
    ),
    "excited": (wired(excited, down=conv(8, 4), up=conv(4, 8)), "shares its channels with 'up'"),
    "residual": (wired(lambda n, x: n.c(n.a(x) + n.b(x)), b=conv(3, 8)), "shares its channels with 'b'"),
    "depthwise": (wired(lambda n, x: n.c(n.b(n.a(x))), b=conv(8, 8, groups=8)), "shares its channels with 'b'"),
    "grouped": (wired(lambda n, x: n.c(n.b(n.a(x))), b=conv(8, 8, groups=2)), "read by the grouped convolution 'b'"),
    "padded shortcut": (wired(lambda n, x: n.c(F.pad(n.a(x), (0, 0, 0, 0, 2, 2)) + n.b(x)), 4, b=conv(3, 8)), "with 'b'"),
    "input added": (wired(lambda n, x: n.c(n.a(x) + x), 3, 3), "combined with the network's input"),
    "written by position": (wired(written, 4, b=conv(3, 4)), "taken apart by their positions by 'slice'"),
    "plain tensor": (wired(lambda n, x: n.c(n.a(x) * n.t), t=torch.rand(1, 8, 1, 1)), "must match the size of tensor"),
    "sizes in forward": (
        wired(lambda n, x: n.c(n.a(x).view(-1, 8, 64).mean(2)), c=nn.Linear(8, 2)),
        "shape '[-1, 8, 64]' is invalid",
    ),
    "through NumPy": (wired(lambda n, x: n.c(torch.from_numpy(n.a(x).numpy()[:, ::-1].copy()))), "no layer is seen to read"),
    "tuple": (wired(lambda n, x: (n.a(x), {"c": n.c(n.a(x))})), "outputs of the network ([0])"),
    "unused": (wired(lambda n, x: n.c(x.repeat(1, 3, 1, 1)[:, :8])), "not used when the network runs"),
    "weight norm": (
        wired(tail, between=nn.Identity(), c=nn.utils.parametrizations.weight_norm(conv(8, 2))),
        "remove_parametrizations",
    ),
    "centred weight": (wired(lambda n, x: F.conv2d(n.a(x), n.c.weight - n.c.weight.mean())), "no weight of its own"),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def truth(network: nn.Module, kept: list[int], images: Tensor) -> Tensor:
    """The output where nothing reads the channels of `a` outside of `kept`, by differentiating the reader.

    A reader is affine: its value with the removed channels' inputs set to zero is its value minus their part, found from
    which inputs move when these channels move.
    """
    seen: list[Tensor] = []
    gone = [k for k in range(network.a.out_channels) if k not in kept]

    def moved(module, args, output):
        output = output.clone()
        output[:, gone] += torch.randn_like(output[:, gone])
        return output

    def keep(module, args):
        seen.append(args[0])

    watch = network.c.register_forward_pre_hook(keep)
    with torch.no_grad():
        network(images)
        still = len(seen)
        moving = network.a.register_forward_hook(moved)
        network(images)
        moving.remove()
        watch.remove()
        masks = [before == after for before, after in zip(seen[:still], seen[still:], strict=True)]
        clean = network.c.register_forward_pre_hook(lambda module, args: (args[0] * masks.pop(0),))
        expected = network(images)
        clean.remove()
    return expected


@pytest.mark.parametrize("kind", CUT)
def test_what_is_listed_is_cut_by_law_8(kind):
    network, images = CUT[kind].double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert prunable_layers(network, images[:1])[0] == "a"
    kept = [0, 3, 4]
    pruned = cut_network(network, {"a": kept}, images[:1])
    if kind == "activation that compares":  # a constant part of it is the same before and after the channel moves
        return
    with torch.no_grad():
        expected = truth(network, kept, images)
        assert relative_difference(expected, pruned(images)) < 1e-10
        assert relative_difference(expected, network(images)) > 1e-3
    pruned.train()(images).sum().backward()
    assert pruned.a.weight.grad is not None


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_has_a_true_reason(kind):
    network, reason = LEFT[kind]
    table = explain(network, torch.randn(1, 3, 8, 8)).set_index("layer")
    assert not table.prunable["a"]
    assert reason in table.reason["a"]
    with pytest.raises(ScapError, match="'a' cannot be pruned alone") as raised:
        cut_network(network, {"a": [0, 1]}, torch.randn(1, 3, 8, 8))
    assert reason in str(raised.value)


def test_a_gate_of_one_map_is_cut_with_what_it_multiplies():
    network, images = wired(gated, gate=conv(8, 1)).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert prunable_layers(network, images[:1]) == ["a", "gate"]
    pruned = cut_network(network, {"a": [0, 3, 4]}, images[:1])
    kept = torch.zeros(8, dtype=torch.float64)
    kept[[0, 3, 4]] = 1
    network.a.register_forward_hook(lambda module, args, output: output * kept[:, None, None])
    assert relative_difference(network(images), pruned(images)) < 1e-10


def test_the_shuffle_of_the_smallest_example_is_not_cut_wrongly():
    network = nn.Sequential(conv(1, 4, bias=False), nn.ChannelShuffle(2), conv(4, 1, bias=False))
    network[0].weight.data[:, 0, 0, 0] = torch.tensor([1.0, 0, 2, 0])
    network[2].weight.data[0, :, 0, 0] = torch.tensor([1.0, 10, 100, 1000])
    assert network(torch.ones(1, 1, 1, 1)).item() == 21
    with pytest.raises(ScapError, match="'0' cannot be pruned alone"):
        cut_network(network, {"0": [0, 2]}, torch.ones(1, 1, 1, 1))


class Grown(nn.Module):
    """Blocks that made the former surgery's time grow sixfold with each: a part is added, all is concatenated."""

    def __init__(self, blocks, added=4):
        super().__init__()
        self.added = added
        self.stem = conv(3, 8)
        self.expand = nn.ModuleList(conv(8, 6) for _ in range(blocks))
        self.project = nn.ModuleList(conv(6, 8) for _ in range(blocks))
        self.head = conv(8, 2)

    def forward(self, images):
        x = self.stem(images)
        for expand, project in zip(self.expand, self.project, strict=True):
            y = project(expand(x).relu())
            x = torch.cat([y[:, : self.added] + x[:, : self.added], y[:, self.added :]], 1)
        return self.head(x)


class Operations(TorchDispatchMode):
    """Counts what PyTorch computes."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **kwargs or {})


def test_the_cost_grows_with_the_network_not_exponentially():
    operations = []
    for blocks in (4, 8):
        with Operations() as counted:
            layers = prunable_layers(Grown(blocks), torch.randn(1, 3, 8, 8))
        assert layers == [f"expand.{i}" for i in range(blocks)]
        operations.append(counted.number)
    assert operations[1] < 2.5 * operations[0]


def test_listing_costs_a_bounded_number_of_passes():
    network = Grown(12)
    calls = []
    network.stem.register_forward_hook(lambda *arguments: calls.append(1))
    assert prunable_layers(network, torch.randn(1, 3, 8, 8))
    assert 0 < len(calls) <= 20


class Stubborn(nn.Module):
    """Three of its layers are read by hand-written sizes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 8), *(conv(8, 8) for _ in range(15))])
        self.head = conv(8, 2)

    def forward(self, images):
        for number, layer in enumerate(self.layers):
            images = layer(images)
            if number in (2, 3, 11):
                images = images.reshape(-1, 8, 8, 8)
        return self.head(images)


def test_layers_whose_cut_fails_are_told_from_the_others():
    layers = prunable_layers(Stubborn(), torch.randn(1, 3, 8, 8))
    assert layers == [f"layers.{i}" for i in range(16) if i not in (2, 3, 11)]


class Auxiliary(nn.Module):
    """A branch that only training runs; `broken`: it needs what the caller does not give; `wide`: it cannot be cut."""

    def __init__(self, wide=False, broken=False):
        super().__init__()
        self.a, self.b, self.wide, self.broken = conv(3, 6), conv(6, 4), wide, broken
        self.aux = nn.Sequential(conv(6, 5), nn.BatchNorm2d(5), nn.Dropout(0.5), conv(5, 2))

    def forward(self, images, targets=None):
        hidden = self.a(images).relu()
        out = self.b(hidden).mean((2, 3))
        if not self.training:
            return out
        if self.broken and targets is None:
            raise ValueError("targets are needed")
        return out, self.aux(hidden.reshape(-1, 6, 8, 8) if self.wide else hidden).mean((2, 3))


def test_branches_that_only_training_runs_are_cut_alike():
    network, images = Auxiliary(), torch.randn(4, 3, 8, 8)
    assert prunable_layers(network, images[:1]) == ["a", "aux.0"]
    pruned = cut_network(network, {"a": [1, 2], "aux.0": [0]}, images[:1]).train()
    assert (pruned.aux[0].in_channels, pruned.aux[1].num_features, pruned.aux[3].in_channels) == (2, 1, 1)
    out, aux = pruned(images)
    (out.sum() + aux.sum()).backward()


def test_what_a_branch_of_training_reads_stays_where_it_cannot_be_cut_or_seen():
    images = torch.randn(2, 3, 8, 8)
    assert "shape '[-1, 6, 8, 8]' is invalid" in explain(Auxiliary(wide=True), images).set_index("layer").reason["a"]
    reason = explain(Auxiliary(broken=True), images).set_index("layer").reason["a"]
    assert "may read its channels in training, and training fails on the example (targets are needed)" in reason


def test_reasons_are_given_for_every_kind_of_convolution():
    network = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.Unflatten(2, (4, -1)), nn.ConvTranspose2d(4, 6, 1), conv(6, 6, groups=2), conv(6, 3)
    )
    table = explain(network, torch.randn(1, 2, 18))
    assert table.layer.tolist() == ["0", "2", "3", "4"]
    assert not table.prunable.any()
    wanted = ["a Conv1d, no two-dim", "a ConvTranspose2d, no two-dim", "grouped (groups=2)", "outputs of the network"]
    assert all(words in reason for words, reason in zip(wanted, table.reason, strict=True))


def test_a_table_of_reasons_is_asked_alike_where_it_is_empty():
    table = explain(Wired(lambda n, x: F.conv2d(x, n.a), a=nn.Parameter(torch.randn(2, 3, 1, 1))), torch.randn(1, 3, 8, 8))
    assert table[table.prunable].columns.tolist() == ["layer", "prunable", "reason"]


def test_a_network_without_prunable_layers_says_what_stands_in_the_way():
    solid = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Conv3d(2, 2, 1), nn.Flatten())
    network = nn.Sequential(nn.Unflatten(1, (1, -1)), solid)
    with pytest.raises(ScapError, match=r"no layer that can be pruned alone: '1\.0': it is a Conv3d.*scap\.explain lists them"):
        scap.score_network(network, torch.randn(2, 4, 3, 3))
    with pytest.raises(ScapError, match="it has no convolution"):
        scap.score_network(nn.Flatten(), torch.randn(2, 4, 3, 3))


def test_a_relative_difference_is_of_the_largest_value():
    assert relative_difference(torch.tensor([10.0, 1]), torch.tensor([10.0, 2])) == pytest.approx(0.1)
    assert relative_difference(torch.tensor([1.0]), torch.tensor([math.nan])) == math.inf
    assert relative_difference(torch.zeros(0), torch.zeros(0)) == 0
