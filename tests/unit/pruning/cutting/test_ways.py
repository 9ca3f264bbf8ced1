"""What a rehearsal with random values cannot see by itself: ways chosen by values, training, outputs of any kind, state."""

import functools
import threading
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import scap
from scap.pruning.copies import undisturbed
from scap.pruning.cutting.check import relative_difference
from scap.pruning.cutting.trials import Surgery

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TERMS = ["l1", "rms", "fidelity", "novelty", "conditional"]


class Wired(nn.Module):
    """Two convolutions, others, and a forward that is given as a function."""

    def __init__(self, wire, **layers):
        super().__init__()
        self.wire = wire
        for name, layer in ({"a": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 5, 1)} | layers).items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.wire(self, x)


def plain(n, x):
    return n.c(n.a(x).relu())


def subtracting(n, x):
    return plain(n, x.sub_(0.1).div_(2))


IN_PLACE = {
    "normalises": lambda: Wired(subtracting),
    "begins with ReLU": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)),
}
USES = {
    "count_operations": lambda n, x, layer: scap.count_operations(n, x),
    "layer_macs": lambda n, x, layer: scap.layer_macs(n, x),
    "measure_latency": lambda n, x, layer: scap.measure_latency(n, x, repeats=2, warmup=1),
    "explain": lambda n, x, layer: scap.explain(n, x),
    "prune": lambda n, x, layer: scap.prune_network(n, {layer: [0, 3]}, x),
    **{
        how: lambda n, x, layer, how=how: scap.prune_network(n, {layer: [0, 3]}, x, compensate=how)
        for how in ("batch-norm", "channelwise", "full")
    },
    **{
        term: lambda n, x, layer, term=term: scap.score_network(n, x, criterion=scap.CriterionSettings(terms={term: 1}))
        for term in TERMS
    },
}


@pytest.mark.real_time
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", IN_PLACE)
def test_images_are_the_caller_s_own(kind, use):
    torch.manual_seed(0)
    network, images = IN_PLACE[kind]().eval(), IMAGES.clone()
    USES[use](network, images, "a" if kind == "normalises" else "1")
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("how", ["batch-norm", "channelwise", "full"])
def test_a_network_that_works_in_place_is_compensated_as_one_that_does_not(how):
    torch.manual_seed(0)
    norm = {"norm": nn.BatchNorm2d(5)}
    in_place = Wired(lambda n, x: n.norm(subtracting(n, x)), **norm).eval()
    other = Wired(lambda n, x: n.norm(plain(n, (x - 0.1) / 2)), **norm).eval()
    other.load_state_dict(in_place.state_dict())
    pruned = [scap.prune_network(network, {"a": [0, 1, 5]}, IMAGES.clone(), compensate=how) for network in (in_place, other)]
    assert relative_difference(*(network(IMAGES.clone()) for network in pruned)) < 1e-6


class Slotted:
    __slots__ = ("y",)

    def __init__(self, y):
        self.y = y


@dataclass(slots=True)
class Data:
    y: Tensor


class Attributes(dict):
    """Keys as attributes: another one is a KeyError, not an AttributeError."""

    __getattr__ = dict.__getitem__


def nested(y, depth=10):
    return [nested(y, depth - 1)] if depth else y


RETURNS = {
    "array": lambda y: y.detach().numpy(),
    "numbers": lambda y: y.tolist(),
    "values": lambda y: {"y": y}.values(),
    "deque": lambda y: deque([y]),
    "attributes": lambda y: Attributes(y=y),
    "slots": Slotted,
    "slotted data class": Data,
    "nested": nested,
    "generator": lambda y: (each for each in [y]),
    "iterator": lambda y: iter([y]),
    "sparse": lambda y: y.to_sparse(),
}


def cut_or_refused(network, kept) -> tuple[nn.Module, str]:
    """The network without channels of `a`, `c` or both, as far as they are accepted, and what was said."""
    said = ""
    for layer in ("a", "c"):
        try:
            network = scap.prune_network(network, {layer: kept}, IMAGES[:1])
        except scap.ScapError as error:
            said += str(error)
    return network, said


@pytest.mark.parametrize("kind", RETURNS)
def test_a_network_s_own_outputs_stay_in_whatever_they_are_returned(kind):
    network, said = cut_or_refused(Wired(lambda n, x: RETURNS[kind](plain(n, x))), [0])
    assert network.c.out_channels == 5
    assert said


@pytest.mark.parametrize("kind", RETURNS)
def test_features_that_are_returned_stay_in_whatever_they_are_returned(kind):
    def wire(n, x):
        hidden = n.a(x).relu()
        return RETURNS[kind](hidden), n.c(hidden)

    network, said = cut_or_refused(Wired(wire), [0])
    assert (network.a.out_channels, network.c.out_channels) == (8, 5)
    assert said


@pytest.mark.parametrize("kind", ["values", "deque", "attributes", "slots", "slotted data class", "nested"])
def test_layers_before_the_outputs_are_pruned_whatever_these_are_returned_in(kind):
    network = Wired(lambda n, x: RETURNS[kind](plain(n, x)))
    assert scap.prunable_layers(network, IMAGES[:1]) == ["a"]
    assert scap.prune_network(network, {"a": [0, 2]}, IMAGES).a.out_channels == 2


def test_what_is_kept_aside_is_a_result_too():
    def wire(n, x):
        hidden = n.a(x).relu()
        n.aside = n.head(hidden).detach()
        return n.c(hidden)

    network = Wired(wire, head=nn.Conv2d(8, 4, 1))
    assert scap.prunable_layers(network, IMAGES[:1]) == ["a"]
    assert "no layer is seen to read" in scap.explain(network, IMAGES[:1]).set_index("layer").reason["head"]


def choice(test):
    """A network that takes `b` where the test says so, else the mean of all channels."""
    return lambda n, x: n.b(n.a(x).relu()) if test(n, x) else n.d(n.a(x).relu().mean(1, keepdim=True))


def leaves_early(n, x):
    hidden = n.a(x).relu()
    return n.b(hidden) if n.gate.item() > 0 else n.d(hidden.flip(1).mean(1, keepdim=True))


BY_VALUE = {
    "a parameter": choice(lambda n, x: n.gate.item() > 0),
    "the images": choice(lambda n, x: x.mean().item() < 50),
    "the number of images": choice(lambda n, x: len(x) == 1),
    "an operation": lambda n, x: n.c(n.a(x).relu().flip(1) if n.gate.item() < 0 else n.a(x).relu()),
    "another operation": leaves_early,
}


@pytest.mark.parametrize("kind", BY_VALUE)
def test_a_way_that_is_chosen_by_values_is_refused(kind):
    torch.manual_seed(0)
    network = Wired(BY_VALUE[kind], b=nn.Conv2d(8, 4, 1), d=nn.Conv2d(1, 4, 1), gate=nn.Parameter(torch.tensor([-1.0])))
    images = IMAGES + 100
    for use in (scap.prunable_layers, lambda n, x: scap.prune_network(n, {"a": [0, 1]}, x)):
        with pytest.raises(scap.ScapError, match="chooses by values what it runs"):
            use(network, images)


@pytest.mark.parametrize("layers", [["a"], None])
@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("term", ["conditional", "conditional-taps", "conditional-spectral"])
def test_a_way_that_only_many_images_take_is_no_raw_error(term, most, layers):
    network = Wired(choice(lambda n, x: len(x) <= most), b=nn.Conv2d(8, 4, 1), d=nn.Conv2d(1, 4, 1))
    with pytest.raises(scap.ScapError, match="chooses by values"):
        scap.score_network(network, IMAGES, layers=layers, criterion=scap.CriterionSettings(terms={term: 1}))
    for how in ("full", "channelwise"):
        with pytest.raises(scap.ScapError, match=r"chooses by values|does not run on 4 calibration images"):
            scap.prune_network(network, {"a": [0, 1]}, IMAGES, compensate=how)


@pytest.mark.parametrize("use", [*TERMS[1:], "channelwise", "full", "batch-norm"])
def test_a_network_that_fails_on_many_images_is_no_raw_error(use):
    def wire(n, x):
        if len(x) > 1:
            raise KeyError("one image only")
        return n.c(n.norm(n.a(x)).relu())

    network = Wired(wire, norm=nn.BatchNorm2d(8))
    calls = {term: lambda n: scap.score_network(n, IMAGES, criterion=scap.CriterionSettings(terms={use: 1})) for term in TERMS}
    call = calls.get(use, lambda n: scap.prune_network(n, {"a": [0, 1]}, IMAGES, compensate=use))
    with pytest.raises(scap.ScapError, match=r"does not run on \d calibration images: 'one image only'"):
        call(network)


def test_of_several_operations_the_one_that_is_not_rehearsed_is_refused():
    def accepted(weights):
        wire = lambda n, x: n.c(n.ops[int(n.alpha.argmax())](n.a(x)).relu())  # noqa: E731
        network = Wired(
            wire, ops=nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2)), alpha=nn.Parameter(torch.tensor(weights))
        )
        try:
            pruned = scap.prune_network(network, {"a": [0, 1]}, IMAGES)
        except scap.ScapError:
            return False
        return pruned(IMAGES).shape == (4, 5, 8, 8)

    assert accepted([3.0, -3.0]) != accepted([-3.0, 3.0])


def test_a_value_that_changes_nothing_of_the_way_is_no_hindrance():
    network = Wired(lambda n, x: plain(n, x) * n.gate.item(), gate=nn.Parameter(torch.tensor([-1.0])))
    assert scap.prunable_layers(network, IMAGES) == ["a"]


TRAINING = {
    "as many values as it had channels": lambda n, h: h * torch.bernoulli(torch.full((len(h), 8, 1, 1), 0.5, dtype=h.dtype)),
    "by the number of channels": lambda n, h: h * (8 / h.shape[1]),
    "mixed": lambda n, h: h.flip(1),
}
ALIKE = {
    "noise": lambda n, h: h + torch.randn_like(h),
    "dropout by hand": lambda n, h: h * (torch.rand_like(h) > 0.5),
    "whole images": lambda n, h: h * torch.empty(len(h), 1, 1, 1, dtype=h.dtype).bernoulli_(0.5),
    "rrelu": lambda n, h: F.rrelu(h, training=True),
    "dropout": lambda n, h: F.dropout2d(h, 0.5),
}


def trained(change):
    def wire(n, x):
        hidden = n.a(x)
        return n.c(change(n, hidden) if n.training else hidden)

    return Wired(wire)


@pytest.mark.parametrize("kind", TRAINING)
def test_what_only_training_computes_is_tried_too(kind):
    with pytest.raises(scap.ScapError, match="'a' cannot be pruned alone"):
        scap.prune_network(trained(TRAINING[kind]), {"a": [0, 1, 2]}, IMAGES[:1])


@pytest.mark.parametrize("kind", ALIKE)
def test_chance_in_training_is_no_hindrance(kind):
    pruned = scap.prune_network(trained(ALIKE[kind]), {"a": [0, 1, 2]}, IMAGES[:1])
    assert pruned.train()(IMAGES).shape == (4, 5, 8, 8)


class FrozenNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("how", ["batch-norm", "channelwise"])
def test_a_batch_norm_that_stays_in_evaluation_keeps_its_statistics(how):
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), FrozenNorm(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    network[3].running_mean.normal_()
    network[3].running_var.uniform_(5, 10)
    pruned = scap.prune_network(network.eval(), {"0": [0, 1, 2]}, IMAGES, compensate=how)
    assert torch.equal(pruned[3].running_var, network[3].running_var)
    if how == "batch-norm":
        assert torch.equal(pruned[3].running_mean, network[3].running_mean)


def closure():
    network = nn.Module()
    network.a, network.norm, network.c = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
    network.forward = lambda x: network.c(network.norm(network.a(x)))
    return network


class Leading(nn.Module):
    """Something in it leads to a part of the network that a copy does not copy."""

    def __init__(self, lead):
        super().__init__()
        self.a, self.c, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)
        self.lead = lead(self)

    def last(self, y):
        return self.head(y)

    def forward(self, x):
        return self.lead(plain(self, x).mean((2, 3)))


def hook(network):
    network.c.register_forward_hook(lambda module, args, output: output * len(network.head.weight))
    return nn.Flatten()


def in_a_list(network):
    steps = [lambda y: network.head(y)]
    return functools.partial(lambda steps, y: steps[0](y), steps)


def reference(network):
    head = weakref.ref(network.head)
    return lambda y: head()(y)


LEADS = {
    "function": lambda network: lambda y: network.head(y),
    "function in a list": in_a_list,
    "reference": reference,
    "hook": hook,
}


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("use", [scap.explain, lambda n, x: scap.prune_network(n, {"a": [0, 1]}, x)])
def test_a_network_whose_copy_would_share_a_part_is_refused(lead, use):
    with pytest.raises(scap.ScapError, match="cannot be copied") as raised:
        use(Leading(LEADS[lead]), IMAGES)
    assert "hook of 'c'" in str(raised.value) if lead == "hook" else "'head." in str(raised.value)


weight = None  # of a network below: what a hook reads of its module by this name is no global


def test_a_hook_that_reads_its_own_module_is_no_hindrance(monkeypatch):
    network = Wired(plain)
    monkeypatch.setitem(globals(), "weight", network.c.weight)
    network.c.register_forward_hook(lambda module, args, output: output * len(module.weight))
    assert scap.prunable_layers(network, IMAGES) == ["a"]


@pytest.mark.parametrize("lead", [lambda network: network.last, lambda network: functools.partial(network.last)])
def test_a_method_leads_to_the_copy(lead):
    network = Leading(lead)
    pruned = scap.prune_network(network, {"a": [0, 1]}, IMAGES)
    pruned(IMAGES).sum().backward()
    assert pruned.head.weight.grad is not None
    assert network.head.weight.grad is None


class Itself(Wired):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    "made", [closure, lambda: Itself(plain), lambda: nn.Sequential(Itself(plain), nn.Conv2d(5, 8, 1), nn.Conv2d(8, 2, 1))]
)
@pytest.mark.parametrize("use", [scap.explain, scap.prunable_layers, lambda n, x: scap.prune_network(n, {}, x)])
def test_a_network_whose_copy_is_the_original_is_refused_and_not_altered(made, use):
    network = made().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(scap.ScapError, match="cannot be copied"):
        use(network, IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class OwnNorm(nn.LayerNorm):
    """Over channels, with a weight of its own shape."""

    def __init__(self, channels):
        super().__init__(channels)
        self.weight, self.bias = (nn.Parameter(torch.full((channels, 1, 1), value)) for value in (1.0, 0.0))

    def forward(self, x):
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) * self.weight + self.bias


class Transposed(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous())

    def forward(self, x):
        return x @ self.weight + self.bias


class Flat(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(self.weight.detach().flatten())

    def forward(self, x):
        return F.linear(x, self.weight.view(self.out_features, -1), self.bias)


@pytest.mark.parametrize("last", [nn.Linear, Transposed, Flat])
def test_what_is_not_cut_keeps_the_sizes_that_it_notes(last):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), last(6, 2)]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), OwnNorm(6), *head)
    pruned = scap.prune_network(network, {"0": [0, 1]}, IMAGES[:1])
    assert pruned[3].normalized_shape == (6,)
    assert (pruned[6].in_features, pruned[6].out_features) == (6, 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(8), nn.InstanceNorm2d(8, affine=True), nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8)]
)
def test_norms_note_the_channels_that_stay(norm):
    network = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    pruned = scap.prune_network(network, {"0": [0, 1, 2]}, IMAGES[:1])
    assert pruned[1].num_features == 3
    assert pruned(IMAGES).shape == (4, 2, 8, 8)
    assert network[1].num_features == 8


class OwnWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(5, 8, 1, 1))

    def forward(self, x):
        return F.conv2d(self.a(x).relu(), self.w)


class OwnLinear(nn.Linear):
    def __init__(self):
        super().__init__(8, 5)
        self.a = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return super().forward(self.a(x).relu().mean((2, 3)))


READERS = {
    "a parameter of the network": OwnWeight,
    "the network itself": OwnLinear,
    "traced": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))),
}


@pytest.mark.parametrize("kind", READERS)
def test_budgets_count_every_weight(kind):
    network = READERS[kind]()
    table = scap.score_network(network, IMAGES, criterion=scap.CriterionSettings(terms={"l1": 1}))
    whole = scap.count_operations(network, IMAGES)["macs"]
    for budget in (0.9, 0.5, 0.2):
        plan = scap.plan_for(table, network, IMAGES, macs=budget)
        left = scap.count_operations(scap.prune_network(network, plan, IMAGES), IMAGES)["macs"] / whole
        assert plan.reached["macs"] == pytest.approx(left)
        assert left <= budget
    assert scap.layer_macs(network, IMAGES)[table.layer[0]] > 0


@pytest.mark.parametrize("kind", ["a parameter of the network", "the network itself"])
def test_a_reader_that_is_no_layer_is_an_obstacle_in_words(kind):
    network = READERS[kind]()
    with pytest.warns(UserWarning, match="a parameter of the network's own"):
        scap.prune_network(network, {"a": [0, 1]}, IMAGES, compensate="full")
    with pytest.raises(scap.ScapError, match="a parameter of the network's own"):
        scap.score_network(network, IMAGES, criterion=scap.CriterionSettings(terms={"conditional": 1}))


def test_a_weight_that_is_used_both_ways_keeps_its_channels():
    def wire(n, x):
        return n.last(F.linear(n.first(n.a(x).mean((2, 3))).relu(), n.first.weight.t()).relu())

    network = Wired(wire, first=nn.Linear(8, 5), last=nn.Linear(8, 2))
    table = scap.explain(network, IMAGES, coupled=True).set_index("layer")
    assert not table.prunable["first"]
    assert "used transposed" in table.reason["first"]


def other_network(channels):
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))


@pytest.mark.parametrize(
    ("change", "channels", "message"),
    [
        ({}, 12, "layer 0 has 8 channels, but the network's has 12"),
        ({}, 4, "layer 0 has 8 channels, but the network's has 4"),
        ({"0": "x"}, 8, "layer 'x' is no"),
        ({"0": "1"}, 8, "layer '1' is no"),
    ],
)
def test_a_budget_takes_no_table_of_another_network(change, channels, message):
    table = scap.score_network(other_network(8), IMAGES, criterion=scap.CriterionSettings(terms={"l1": 1}))
    with pytest.raises(scap.ScapError, match=message):
        scap.plan_for(table.replace({"layer": change}), other_network(channels), IMAGES, macs=0.9)


@pytest.mark.parametrize(
    ("options", "message"), [({"floors": [1]}, "floors: is a list"), ({"ignore": 3}, r"ignore is 3 \(int\); give a list")]
)
def test_floors_and_layers_of_another_type_are_refused(options, message):
    table = scap.score_network(other_network(8), IMAGES, criterion=scap.CriterionSettings(terms={"l1": 1}))
    with pytest.raises(scap.ScapError, match=message):
        scap.plan_for(table, other_network(8), IMAGES, macs=0.9, **options)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: nn.Sequential(nn.LazyConv2d(8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)), r"'0' \(LazyConv2d\) has no weights yet"),
        (lambda: None, "is a NoneType"),
    ],
)
@pytest.mark.parametrize("use", [scap.count_operations, scap.layer_macs, scap.explain, scap.score_network])
def test_what_cannot_be_run_as_a_network_is_named(made, message, use):
    with pytest.raises(scap.ScapError, match=message):
        use(made(), IMAGES)


def with_compiled_part():
    return nn.Sequential(nn.Conv2d(3, 8, 1), torch.jit.script(nn.BatchNorm2d(8)), nn.Conv2d(8, 2, 1)).eval()


@pytest.mark.parametrize("use", [scap.explain, scap.score_network, lambda n, x: scap.prune_network(n, {"0": [0]}, x)])
def test_a_compiled_part_is_named_where_channels_are_followed(use):
    with pytest.raises(scap.ScapError, match="'1' is compiled by TorchScript"):
        use(with_compiled_part(), IMAGES)


def test_a_compiled_part_is_no_hindrance_elsewhere(tmp_path):
    network = with_compiled_part()
    assert scap.count_operations(network, IMAGES)["macs"] == 64 * (3 * 8 + 8 * 2)
    scap.save_network(tmp_path / "n.safetensors", network)
    again = scap.load_network(tmp_path / "n.safetensors", build=with_compiled_part)
    assert torch.equal(again(IMAGES), network(IMAGES))
    scap.finetune(network, (IMAGES, torch.zeros(4, 2, 8, 8)), scap.TrainingSettings(1, 2, 0.01), loss=nn.functional.mse_loss)
    assert not torch.equal(again(IMAGES), network.eval()(IMAGES))


def test_what_cannot_be_copied_is_named():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
    network[1].lock = threading.Lock()
    with pytest.raises(scap.ScapError, match=r"'1' holds 'lock' \(.*\); set it to None first"):
        scap.explain(network, IMAGES)


def test_training_that_runs_the_same_is_not_tried_twice():
    with undisturbed(network := Wired(plain)):
        surgery = Surgery(network, IMAGES[:1])
        assert not surgery.trains_more
        assert np.isclose(surgery.check({"a": [0, 1]}).difference, 0)
