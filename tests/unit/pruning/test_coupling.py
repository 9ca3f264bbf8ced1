"""Channels that must go together are one group; every cut of a group is law 8 to the letter."""

import pytest
import torch
from torch import nn
from wired import Wired

import scap
from scap.errors import ScapError
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.copies import undisturbed
from scap.pruning.cutting.check import relative_difference
from scap.pruning.cutting.trials import Surgery
from scap.pruning.files import load_network, read_metadata, save_network
from scap.pruning.sizes import Sizes
from scap.pruning.surgery import cut_network, explain, prunable_layers

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs, outputs, size=1, **arguments):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **arguments)


def residual():
    def wire(n, x):
        x = n.stem(x)
        x = x + n.second(n.first(x).relu())
        return n.head(n.norm(x + n.third(x)).relu().mean((2, 3)))

    layers = {"stem": conv(3, 6, 3), "first": conv(6, 4), "second": conv(4, 6, 3), "third": conv(6, 6)}
    return Wired(wire, **layers, norm=nn.BatchNorm2d(6), head=nn.Linear(6, 2))


def inverted():
    """A depthwise convolution and a gate."""

    def wire(n, x):
        x = n.depthwise(n.expand(x).relu())
        return n.project(x * n.gate(n.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid())

    layers = {"expand": conv(3, 6), "depthwise": conv(6, 6, 3, groups=6), "squeeze": conv(6, 3), "gate": conv(3, 6)}
    return Wired(wire, **layers, project=conv(6, 2))


def grouped():
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12, 3, groups=4), nn.ReLU(), conv(12, 2))


def linear():
    return nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(256, 10), nn.ReLU(), nn.Linear(10, 5), nn.GELU(), nn.Linear(5, 2))


def tokens():
    """Linear layers that read tokens which are no contiguous memory."""

    def wire(n, x):
        x = n.embed(x).flatten(2).mT
        return n.head(x + n.second(n.first(x).relu())).mean(1)

    return Wired(wire, embed=conv(3, 6), first=nn.Linear(6, 4), second=nn.Linear(4, 6, bias=False), head=nn.Linear(6, 2))


def widening():
    """Stages whose shortcut pads the channels: the second has units that the first does not have."""

    def wire(n, x):
        x = n.a(x)
        return n.c(nn.functional.pad(x, (0, 0, 0, 0, 2, 2)) + n.b(x))

    return Wired(wire, a=conv(3, 4), b=conv(4, 8), c=conv(8, 2))


GROUPS = {
    "residual": (residual, {"stem": ["stem", "second", "third"], "first": ["first"]}),
    "inverted": (inverted, {"expand": ["expand", "depthwise", "gate"], "squeeze": ["squeeze"]}),
    "grouped": (grouped, {"0": ["0", "2"]}),
    "linear": (linear, {"0": ["0"], "2": ["2"], "4": ["4"]}),
    "tokens": (tokens, {"embed": ["embed", "second"], "first": ["first"]}),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_what_goes_together_is_a_group_by_the_name_of_its_first_layer(kind):
    make, groups = GROUPS[kind]
    table = explain(make(), IMAGES[:1], coupled=True)
    assert prunable_layers(make(), IMAGES[:1], coupled=True) == list(groups)
    found = table[table.prunable].groupby("group", sort=False)["layer"].agg(list).to_dict()
    assert found == groups
    (last,) = table[~table.prunable].itertuples()
    assert "outputs of the network" in last.reason


@pytest.mark.parametrize("kind", GROUPS)
def test_a_cut_computes_what_the_original_does_without_these_channels(kind):
    """An oracle that knows nothing of the surgery: the members' channels are zeroed after each of them."""
    make, groups = GROUPS[kind]
    network = make().double().eval()
    for name, members in groups.items():
        with undisturbed(network):
            plan = Surgery(network, IMAGES[:1], True).halves([name])
        pruned = cut_network(network, plan, IMAGES[:1].double(), coupled=True)
        assert all(
            pruned.get_submodule(member).weight.shape != network.get_submodule(member).weight.shape for member in members
        )
        whole = scap.pruning.history.applied(pruned)
        assert whole.keys() == set(members)
        expected = zeroed(network, whole)(IMAGES.double())
        assert relative_difference(expected, pruned(IMAGES.double())) < 1e-12
        assert Sizes(network, IMAGES[:1]).of(plan) == scap.count_operations(pruned, IMAGES[:1])


def zeroed(network, plan):
    copy = scap.pruning.copies.copied(network)
    for layer, kept in plan.items():
        module = copy.get_submodule(layer)

        def hook(module, args, output, kept=kept):
            mask = torch.zeros(len(module.weight), dtype=output.dtype)
            mask[kept] = 1
            return output * (mask if isinstance(module, nn.Linear) else mask[:, None, None])

        module.register_forward_hook(hook)
    if hasattr(copy, "norm"):  # a batch norm gives its shift where nothing comes in
        for own in (copy.norm.bias, copy.norm.running_mean):
            mask = torch.zeros_like(own)
            mask[plan.get("stem", range(len(own)))] = 1
            own.data *= mask
    return copy


def test_a_grouped_convolution_loses_whole_groups():
    network = grouped().eval()
    pruned = cut_network(network, {"0": [0, 3, 6, 7]}, IMAGES[:1], coupled=True)  # of groups 0, 1 and 3
    assert (pruned[0].out_channels, pruned[2].in_channels, pruned[2].out_channels, pruned[2].groups) == (6, 6, 9, 3)
    assert pruned[4].in_channels == 9


def test_without_being_asked_for_groups_stay():
    with pytest.raises(ScapError, match=r"'stem' cannot be pruned alone.*'second'"):
        cut_network(residual(), {"stem": [0, 1]}, IMAGES[:1])
    assert prunable_layers(residual(), IMAGES[:1]) == ["first"]
    assert "group" not in explain(residual(), IMAGES[:1])


def test_a_plan_names_the_first_layer_of_a_group():
    with pytest.raises(ScapError, match="'second' cannot be pruned: it goes with a group, which plans name by 'stem'"):
        cut_network(residual(), {"second": [0, 1]}, IMAGES[:1], coupled=True)
    with pytest.raises(ScapError, match="layer 'norm' is no convolution or linear layer"):
        cut_network(residual(), {"norm": [0, 1]}, IMAGES[:1], coupled=True)


def test_sizes_that_are_written_down_stand_in_the_way():
    """The border that a shortcut adds has a size of its own."""
    assert prunable_layers(widening(), IMAGES[:1], coupled=True) == []


class Attention(nn.Module):
    """A stream that attention reads and writes; `heads` tells how."""

    def __init__(self, heads):
        super().__init__()
        self.heads, self.stem, self.norm = heads, conv(3, 8), nn.LayerNorm(8)
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2)
        return self.head((x + self.out(self.heads(self.qkv(self.norm(x))))).mean(1))


def fused_heads(x):
    q, k, v = x.unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def plain_heads(x):
    q, k, v = x.chunk(3, 2)
    return (q @ k.transpose(1, 2)).softmax(2) @ v


@pytest.mark.parametrize("heads", [fused_heads, plain_heads])
def test_attention_heads_stay_whole(heads):
    table = explain(Attention(heads), IMAGES[:1], coupled=True).set_index("layer")
    assert table.prunable.to_dict() == {"stem": True, "qkv": False, "out": True, "head": False}
    assert table.reason["qkv"].endswith("attention heads, and other products of two results, stay whole")
    assert table.group["out"] == "stem"


def test_the_attention_of_torch_stays_whole():
    network = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    table = explain(network, torch.randn(1, 5, 8), coupled=True).set_index("layer")
    assert table.prunable.to_dict() == {"self_attn.out_proj": False, "linear1": True, "linear2": False}
    assert table.reason["linear2"].endswith("attention heads, and other products of two results, stay whole")


class Normed(nn.Module):
    """A block as ConvNeXt has it."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise, self.norm = conv(3, 6), conv(6, 6, 3, groups=6), nn.LayerNorm(6)
        self.wide, self.narrow, self.scale = nn.Linear(6, 12), nn.Linear(12, 6), nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        x = self.stem(images)
        y = self.narrow(nn.functional.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return self.head((x + self.scale * y.permute(0, 3, 1, 2)).mean((2, 3)))


def test_a_layer_norm_is_over_the_channels_that_stay(tmp_path):
    network = Normed().eval()
    nn.init.uniform_(network.norm.weight), nn.init.uniform_(network.norm.bias)
    assert prunable_layers(network, IMAGES[:1], coupled=True) == ["stem", "wide"]
    kept = torch.tensor([0, 2, 5])
    pruned = cut_network(network, {"stem": [0, 2, 5]}, IMAGES[:1], coupled=True)
    assert pruned.norm.normalized_shape == (3,)
    x = network.stem(IMAGES)[:, kept]
    y = network.depthwise(network.stem(IMAGES))[:, kept].permute(0, 2, 3, 1)
    y = nn.functional.layer_norm(y, (3,), network.norm.weight[kept], network.norm.bias[kept])
    y = nn.functional.gelu(nn.functional.linear(y, network.wide.weight[:, kept], network.wide.bias))
    x = x + network.scale[kept] * network.narrow(y)[..., kept].permute(0, 3, 1, 2)
    expected = nn.functional.linear(x.mean((2, 3)), network.head.weight[:, kept], network.head.bias)
    assert relative_difference(expected, pruned(IMAGES)) < 1e-5
    save_network(tmp_path / "n", pruned, example_shape=IMAGES.shape)
    assert torch.equal(load_network(tmp_path / "n", build=Normed)(IMAGES), pruned(IMAGES))
    images = torch.randn(16, 3, 8, 8)
    with pytest.raises(ScapError, match=r"'stem' has no conditional score: .*'norm' \(LayerNorm\), over those that stay"):
        scap.score_network(network, images, coupled=True, criterion=scap.CriterionSettings(terms={"conditional": 1}))


@pytest.mark.parametrize("kind", GROUPS)
def test_a_network_without_channels_of_groups_is_saved_and_loaded(kind, tmp_path):
    make, groups = GROUPS[kind]
    network = make().eval()
    with undisturbed(network):
        plan = Surgery(network, IMAGES[:1], True).halves(groups)
    pruned = cut_network(network, plan, IMAGES[:1], coupled=True)
    save_network(tmp_path / "n", pruned, plan=plan, example_shape=IMAGES.shape)
    assert read_metadata(tmp_path / "n")["plan"].keys() == {member for members in groups.values() for member in members}
    loaded = load_network(tmp_path / "n", build=make)
    assert torch.equal(loaded(IMAGES), pruned(IMAGES))
    loaded.train()(IMAGES).sum().backward()


class Tied(nn.Module):
    """Two layers of one weight; a plan names the first of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 6), conv(3, 6), conv(6, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.a(x).relu() + self.b(x.flip(3)).relu())


def test_layers_of_one_weight_are_saved_and_loaded(tmp_path):
    pruned = cut_network(Tied(), {"a": [0, 2, 5]}, IMAGES, coupled=True)
    save_network(tmp_path / "n", pruned, example_shape=IMAGES.shape)
    again = load_network(tmp_path / "n", build=Tied)
    assert again.b.weight is again.a.weight
    assert torch.equal(again(IMAGES), pruned(IMAGES))


def test_plans_of_groups_compose_and_can_be_applied_again():
    network = inverted().eval()
    once = cut_network(network, {"expand": [0, 2, 3, 5], "squeeze": [0, 2]}, IMAGES[:1], coupled=True)
    twice = cut_network(once, {"expand": [1, 3]}, IMAGES[:1], coupled=True)
    whole = {"expand": [2, 5], "depthwise": [2, 5], "gate": [2, 5], "squeeze": [0, 2]}
    assert scap.pruning.history.applied(twice) == whole
    assert torch.equal(cut_network(network, whole, IMAGES[:1], coupled=True)(IMAGES), twice(IMAGES))
    images, short = torch.randn(16, 3, 8, 8), {"expand": [2, 5], "squeeze": [0, 2]}
    by_all, by_first = (prune_and_compensate(network, plan, images, coupled=True)[0] for plan in (whole, short))
    assert torch.equal(by_all(IMAGES), by_first(IMAGES))
    with pytest.raises(ScapError, match="'gate' cannot be pruned: it goes with a group, which plans name by 'expand'"):
        cut_network(network, whole | {"gate": [2, 4]}, IMAGES[:1], coupled=True)


def test_rounds_prune_groups():
    criterion = scap.CriterionSettings(terms={"l1": 1})
    network, images = residual().eval(), torch.randn(8, 3, 8, 8)
    pruned, plan = scap.prune_in_rounds(network, images, 2, macs=0.4, criterion=criterion, coupled=True)
    assert plan.keys() == {"stem", "first", "second", "third"}
    assert pruned.stem.out_channels == pruned.third.out_channels == len(plan["stem"])
    assert torch.equal(cut_network(network, plan, images[:1], coupled=True)(images), pruned(images))


@pytest.mark.parametrize("kind", [nn.ConvTranspose2d, nn.Conv1d, nn.Conv3d])
def test_a_layer_of_another_kind_is_not_said_to_go_with_itself(kind):
    dims = 2 if kind is nn.ConvTranspose2d else int(kind.__name__[4])
    network = nn.Sequential(kind(3, 6, 1), nn.ReLU(), kind(6, 2, 1))
    reason = explain(network, torch.randn(1, 3, *[4] * dims), coupled=True).set_index("layer").reason["0"]
    assert reason == f"it is a {kind.__name__}, no two-dimensional convolution or linear layer"
