"""The caller's world: modes, precisions, wrappers, hooks, inputs; plans of any type; every mistake one line."""

from collections import namedtuple
from contextlib import contextmanager
from operator import attrgetter

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

import scap
from scap.criterion.spectra import half_plane
from scap.criterion.terms import TERMS
from scap.errors import ScapError
from scap.pruning.surgery import cut_network, explain, prunable_layers


def small(dtype=torch.float32):
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1), nn.Flatten()
    return nn.Sequential(*layers).to(dtype)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 8)


PLAN = {"0": [1, 4]}
MODES = [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"), torch.enable_grad, lambda: torch.device("meta")]


@pytest.mark.parametrize("world", MODES)
def test_the_world_around_a_call_changes_nothing(world, images):
    torch.manual_seed(1)
    network = small()
    expected = cut_network(network, PLAN, images)
    with world():
        assert prunable_layers(network, images) == ["0"]
        pruned = cut_network(network, PLAN, images)
    assert all(torch.equal(a, b) for a, b in zip(pruned.state_dict().values(), expected.state_dict().values(), strict=True))
    pruned(images).sum().backward()  # no tensor of inference mode


CRITERION = scap.CriterionSettings(terms={"conditional": 1})


def rounded(name, value):
    """A world in which PyTorch may drop digits of float32, by its new switches."""

    @contextmanager
    def world():
        backend = attrgetter(name)(torch.backends)
        before = backend.fp32_precision
        backend.fp32_precision = value
        try:
            yield
            assert backend.fp32_precision == value  # as the caller left it
        finally:
            backend.fp32_precision = before

    return world


@contextmanager
def old_switches():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision("highest")


WORLDS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "old switches": old_switches,
    "matrix products": rounded("mkldnn.matmul", "bf16"),
    "convolutions": rounded("mkldnn.conv", "bf16"),
    "convolutions on GPUs": rounded("cudnn.conv", "tf32"),
    "default device": lambda: torch.device("meta"),  # what is made on it by mistake has no values
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("compensate", ["batch-norm", "channelwise", "full"])
def test_scores_and_compensation_are_those_of_any_world(name, compensate):
    torch.manual_seed(1)
    network, images = small(), torch.randn(64, 3, 8, 8)

    def both():
        scores = scap.score_network(network, images, criterion=CRITERION)
        return scores["score"].tolist(), scap.prune_network(network, PLAN, images, compensate=compensate).state_dict()

    scores, weights = both()
    with WORLDS[name]():
        found, pruned = both()
    assert found == scores
    assert all(torch.equal(pruned[key], value) and not pruned[key].is_inference() for key, value in weights.items())


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("term", sorted(TERMS))
def test_no_score_is_made_on_the_default_device(term, coupled):
    torch.manual_seed(1)
    network, images = small(), torch.randn(8, 3, 8, 8)
    half_plane.cache_clear()
    with torch.device("meta"):
        found = scap.score_network(network, images, criterion=term, coupled=coupled)
    pd.testing.assert_frame_equal(found, scap.score_network(network, images, criterion=term, coupled=coupled))


def test_what_is_not_compensated_is_a_warning(images):
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3))
    with pytest.warns(UserWarning, match="not compensated: '0': '2' reads it, a ConvTranspose2d") as warned:
        scap.prune_network(network, PLAN, images, compensate="full")
    assert warned[0].filename == __file__


def test_random_streams_and_fast_paths_are_left_alone(images):
    before, fused = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    cut_network(small(), PLAN, images)
    torch.set_rng_state(before)
    network = small()
    prunable_layers(network, images)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    small()
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.backends.mha.get_fastpath_enabled() == fused


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_any_precision_keep_it(dtype, images):
    pruned = cut_network(small(dtype), PLAN, images)
    assert {parameter.dtype for parameter in pruned.parameters()} == {dtype}
    assert pruned(images.to(dtype)).dtype == dtype


class HalfInside(nn.Module):
    """Casts by hand: it runs in no other precision than its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1).bfloat16(), nn.Conv2d(6, 2, 1)

    def forward(self, images):
        return self.b(self.a(images.bfloat16()).float())


def test_a_network_of_two_precisions_is_cut(images):
    pruned = cut_network(HalfInside(), {"a": [0, 5]}, images)
    assert (pruned.a.weight.dtype, pruned.b.weight.shape) == (torch.bfloat16, (2, 2, 1, 1))


def test_wrapped_and_compiled_networks_name_what_to_pass(images):
    cases = [(nn.DataParallel(small()), "pass `network.module`"), (torch.compile(small()), "pass `network._orig_mod`")]
    cases.append((torch.jit.trace(small(), images), "TorchScript"))
    cases.append(("network", "is a str, not a torch.nn.Module"))
    for network, message in cases:
        for call in (
            lambda network=network: cut_network(network, PLAN, images),
            lambda n=network: prunable_layers(n, images),
        ):
            with pytest.raises(ScapError, match=message):
                call()


def masked():
    network = small()
    prune.l1_unstructured(network[0], "weight", 0.5)
    return network


def with_old_weight_norm():
    network = small()
    torch.nn.utils.weight_norm(network[0])
    return network


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), None

    def forward(self, images):
        self.last = self.a(images)
        return self.b(self.last)


def run_before(network):
    network(torch.randn(1, 3, 8, 8))
    return network


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "layer", "remedy"),
    [
        (masked, "0", "torch.nn.utils.prune.remove"),
        (with_old_weight_norm, "0", "torch.nn.utils.remove_weight_norm"),
        (lambda: nn.Sequential(parametrizations.weight_norm(small()[0]), *small()[1:]), "0", "remove_parametrizations"),
        (lambda: run_before(Remembering()), "a", "stores the tensor 'last' of a forward pass; set it to None"),
    ],
)
def test_what_holds_a_weight_or_a_tensor_names_its_remedy(build, layer, remedy, images):
    with pytest.raises(ScapError, match=remedy):
        cut_network(build(), {layer: [0]}, images)


def test_the_remedies_work(images):
    network = masked()
    prune.remove(network[0], "weight")
    assert prunable_layers(network, images) == ["0"]
    remembering = run_before(Remembering())
    remembering.last = None
    assert prunable_layers(remembering, images) == ["a"]


def test_a_parametrised_layer_elsewhere_is_no_hindrance(images):
    network = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1), parametrizations.spectral_norm(nn.Conv2d(6, 2, 1))
    )
    assert prunable_layers(network, images) == ["0"]
    assert cut_network(network, {"0": [1]}, images)(images).shape == network(images).shape


class Several(nn.Module):
    """Two images, a mask that may be missing, a switch; it returns a named tuple."""

    Out = namedtuple("Out", "logits aux")

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(10, 2, 1)

    def forward(self, images, depth, mask=None, scale: float = 1.0):
        hidden = torch.cat([self.a(images).relu(), self.b(depth)], 1) * scale
        hidden = self.c(hidden if mask is None else hidden * mask)
        return self.Out(hidden.mean((2, 3)), {"map": hidden})


@pytest.mark.parametrize(
    "example",
    [
        lambda images: (images, images[:, :1]),
        lambda images: {"images": images, "depth": images[:, :1], "mask": images[:, :1] > 0},
        lambda images: (images, images[:, :1], None, 2.0),
    ],
)
def test_inputs_and_outputs_are_nested_as_one_likes(example, images):
    network, given = Several().double(), example(images)
    assert prunable_layers(network, given) == ["a", "b"]
    pruned = cut_network(network, {"a": [2], "b": [0, 3]}, given)
    assert pruned.c.in_channels == 3
    macs = {name: scap.count_operations(n, given)["macs"] for name, n in (("before", network), ("after", pruned))}
    assert macs["before"] == 64 * (3 * 6 + 4 + 20) > macs["after"] == 64 * (3 + 2 + 6)


def test_whole_batches_may_be_given_where_one_image_is_enough(images):
    network, sizes = small(), []
    network[0].register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    cut_network(network, PLAN, torch.randn(64, 3, 8, 8))
    assert max(sizes) <= 2


class Frames(nn.Module):
    """Needs all images of its example: four frames make a clip."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, images):
        return self.b(self.a(images).relu()).mean((2, 3)).view(-1, 4, 2).mean(1)


def test_networks_that_need_their_whole_example_get_it():
    assert prunable_layers(Frames(), torch.randn(4, 3, 8, 8)) == ["a"]


def test_frozen_parts_tied_weights_and_memory_formats_stay(images):
    network = small().to(memory_format=torch.channels_last)
    network[0].weight.requires_grad_(False)
    network.add_module("twin", nn.Conv2d(6, 4, 1))
    network.twin.weight = network[3].weight
    network.forward = None
    tied = Twins(network)
    pruned = cut_network(tied, {"a": [1, 4]}, images)
    assert pruned.b.weight is pruned.c.weight
    assert pruned.b.in_channels == pruned.c.in_channels == 2
    assert not pruned.a.weight.requires_grad
    assert pruned.a.weight.is_contiguous(memory_format=torch.channels_last)


class Twins(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.a, self.norm, self.b, self.c = parts[0], parts[1], parts[3], parts.twin

    def forward(self, images):
        hidden = self.norm(self.a(images)).relu()
        return self.b(hidden) + self.c(hidden.flip(3))


@pytest.mark.parametrize(
    "kept", [torch.tensor([1, 4]), np.array([1, 4]), (1, 4), range(1, 5, 3), [torch.tensor(1), np.int64(4)]]
)
def test_plans_hold_integers_of_any_type(kept, images):
    network = small()
    expected = cut_network(network, PLAN, images)
    assert torch.equal(cut_network(network, {"0": kept}, images)[0].weight, expected[0].weight)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"0": [False, True]}, "not a mask of booleans"),
        ({"0": torch.tensor([True, False])}, "not a mask of booleans"),
        ({"0": torch.tensor([])}, "keeps no channel|as integers"),
        ({"0": [0.5]}, "as integers"),
        ({"0": ["1"]}, "as integers"),
        ({"0": None}, "as integers"),
        ({"0": 3}, "as integers"),
        ({"0": torch.tensor([[0, 1]])}, "as integers"),
        ({"0": [10**30]}, r"has channels 0\.\.5"),
        ([0, 1], "is a list; it must map layers"),
        (None, "is a NoneType; it must map layers"),
        (pd.DataFrame({"layer": ["0"], "channel": [0]}), "is a DataFrame; it must map layers"),
        ({"2": [0]}, r"'2' is no ungrouped convolution \(it is a ReLU\); choose from 0, 3"),
        ({1: [0]}, r"^plan: 1 \(int\) is no layer's name; it must map layers to"),
    ],
)
def test_wrong_plans_end_in_one_line(plan, message, images):
    with pytest.raises(ScapError, match=message) as raised:
        cut_network(small(), plan, images)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "NoneType holds no tensor"),
        (torch.zeros(0, 3, 8, 8), "holds no image"),
        (torch.zeros(1, 3, 8, 8).to_sparse(), "of the layout torch.sparse_coo; make it a dense tensor"),
        (torch.zeros(1, 3, 2, 2), r"does not run on an example of shape \(1, 3, 2, 2\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"of shape \(1, 3, 8, 8\) of torch.uint8"),
        ({"image": torch.zeros(1, 3, 8, 8)}, "unexpected keyword"),
        ((torch.zeros(1, 3, 8, 8),) * 2, "takes 2 positional arguments|positional"),
    ],
)
def test_wrong_examples_end_in_one_line(example, message, images):
    for call in (prunable_layers, explain, lambda n, e: cut_network(n, PLAN, e), scap.count_operations):
        with pytest.raises(ScapError, match=message) as raised:
            call(small(), example)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("call", [prunable_layers, explain, lambda n, e: cut_network(n, PLAN, e)])
def test_a_network_without_values_is_named(call, images):
    with pytest.raises(ScapError, match="network: it is on the device meta"):
        call(small().to("meta"), images)


def test_networks_that_have_diverged_are_cut_alike(images):
    network = small()
    nn.init.constant_(network[0].weight, float("nan"))
    assert prunable_layers(network, images) == ["0"]


def test_a_loader_gives_the_calibration_images(images):
    network, many = small().eval(), torch.randn(12, 3, 8, 8)
    table = scap.score_network(network, many)
    for loader in (DataLoader(TensorDataset(many, torch.zeros(12)), 5), DataLoader(TensorDataset(many), 4), many.split(5)):
        given = loader if not isinstance(loader, tuple) else iter(loader)
        assert scap.score_network(network, given).equals(table)
    with pytest.raises(ScapError, match="the loader gives dict"):
        scap.score_network(network, iter([{"pixels": many}]))


def test_a_loader_is_no_example(images):
    loader = DataLoader(TensorDataset(images), 2)
    for call in (scap.count_operations, scap.explain, scap.prunable_layers, scap.layer_macs):
        with pytest.raises(ScapError, match=r"^example is a DataLoader; give one batch of it"):
            call(small(), loader)
