"""Surgery: laws 7 and 8, and what may be pruned."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from scap.errors import ScapError
from scap.models.build import build_network
from scap.models.names import PRUNABLE
from scap.pruning.surgery import cut_network, prunable_layers


class Flattened(nn.Module):
    """Its second convolution feeds a linear layer pixel by pixel; relu in place, without batch norm there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 5, 3, stride=2),
        )
        self.head = nn.Linear(5 * 3 * 4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu_(self.norm(self.first(images)))
        return self.head(torch.relu(self.second(hidden)).flatten(1))


class Joined(nn.Module):
    """Two branches, concatenated; `fixed` is read with a number of channels written into forward."""

    def __init__(self, fixed: bool = False) -> None:
        super().__init__()
        self.left, self.right, self.after = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 6, 1)
        self.head, self.fixed = nn.Linear(6, 2), fixed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.cat([self.left(images).relu(), self.right(images).relu()], 1)
        hidden = self.after(hidden).relu().mean((2, 3))
        return self.head(hidden.view(-1, 6) if self.fixed else hidden)


def settled(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """In float64, with batch norms whose statistics, scales and shifts all matter."""
    network = network.double().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        network(example + torch.randn_like(example))
    return network.eval()


def with_channels_zeroed(network: nn.Module, kept_after: dict[str, list[int]]) -> nn.Module:
    """A copy in which the outputs of the named modules (activations) are zero outside the channels kept."""
    network = copy.deepcopy(network)
    for name, kept in kept_after.items():

        def zero(module, args, output, kept=kept):
            mask = torch.zeros(output.shape[1], dtype=output.dtype)
            mask[kept] = 1
            return output * mask[:, None, None]

        network.get_submodule(name).register_forward_hook(zero)
    return network


def assert_law_8(network, plan, activations, images):
    pruned = cut_network(network, plan, images[:1])
    reference = with_channels_zeroed(network, {activations[layer]: kept for layer, kept in plan.items()})
    difference = (pruned(images) - reference(images)).abs().max().item()
    assert difference < 1e-10
    assert (pruned(images) - network(images)).abs().max().item() > 1e-4  # the channels removed did matter
    return pruned


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(3, 3, 32, 32, dtype=torch.float64)


def random_plan(network, layers, seed=0):
    generator = np.random.default_rng(seed)
    plan = {}
    for layer in layers:
        channels = network.get_submodule(layer).out_channels
        kept = generator.choice(channels, generator.integers(1, channels), replace=False)
        plan[layer] = sorted(kept.tolist())
    return plan


def test_law_8_vgg16(images):
    network = settled(build_network("vgg16", width=0.25), images)
    layers = prunable_layers(network, images[:1])
    assert layers == [name for name, _ in network.named_children() if name.startswith("conv")]
    plan = random_plan(network, layers)
    pruned = assert_law_8(network, plan, {name: name.replace("conv", "relu") for name in layers}, images)
    assert {layer: pruned.get_submodule(layer).out_channels for layer in layers} == {
        layer: len(kept) for layer, kept in plan.items()
    }


def test_law_8_residual_network(images):
    network = settled(build_network("resnet20", width=0.5), images)
    layers = prunable_layers(network, images[:1])
    assert layers == PRUNABLE["resnet20"]
    assert_law_8(network, random_plan(network, layers), {name: name[:-5] + "relu1" for name in layers}, images)


def test_law_8_through_a_flattened_map():
    torch.manual_seed(1)
    images = torch.randn(3, 3, 10, 11, dtype=torch.float64)
    network = settled(Flattened(), images)
    pruned = cut_network(network, {"first": [0, 4, 5], "second": [1, 3]}, images[:1])
    reference = copy.deepcopy(network)
    with torch.no_grad():  # a channel is removed where nothing reads it any more
        reference.second.weight[:, [1, 2, 3]] = 0
        reference.head.weight.view(4, 5, 3, 4)[:, [0, 2, 4]] = 0
    torch.testing.assert_close(pruned(images), reference(images), rtol=0, atol=1e-10)
    assert pruned.head.in_features == 2 * 3 * 4


def test_law_8_through_a_concatenation():
    torch.manual_seed(2)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    network = Joined().double()
    pruned = cut_network(network, {"left": [1, 2], "right": [0, 4]}, images[:1])
    reference = copy.deepcopy(network)
    with torch.no_grad():
        reference.after.weight[:, [0, 3, 5, 6, 7]] = 0
    torch.testing.assert_close(pruned(images), reference(images), rtol=0, atol=1e-10)
    assert pruned.after.in_channels == 4


@pytest.mark.parametrize("architecture", ["vgg16", "resnet20"])
def test_law_7_a_full_plan_leaves_outputs_bit_equal(architecture, images):
    network = build_network(architecture, width=0.25).eval()
    images = images.float()
    plan = {name: list(range(network.get_submodule(name).out_channels)) for name in prunable_layers(network, images)}
    assert plan
    for same in (plan, {}):
        assert torch.equal(cut_network(network, same, images[:1])(images), network(images))


def test_the_order_of_a_plan_does_not_matter(images):
    network = build_network("vgg16", width=0.25).double().eval()
    plan = random_plan(network, ["conv1_1", "conv1_2", "conv4_2"])
    backwards = dict(reversed(plan.items()))
    assert torch.equal(
        cut_network(network, plan, images[:1])(images),
        cut_network(network, backwards, images[:1])(images),
    )


def test_surgery_leaves_the_original_and_all_modes_alone(images):
    network = build_network("vgg16", width=0.25).double().train()
    network.bn3_1.eval()
    network.conv2_1.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        prunable_layers(network, images[:1])
        pruned = cut_network(network, {"conv1_2": [0, 3], "conv2_1": [5]}, images[:1])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for either in (network, pruned):
        assert [name for name, module in either.named_modules() if not module.training] == ["bn3_1"]
        frozen = [name for name, parameter in either.named_parameters() if not parameter.requires_grad]
        assert frozen == ["conv2_1.weight", "conv2_1.bias"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"conv9_9": [0]}, "'conv9_9' is no ungrouped convolution"),
        ({"classifier": [0]}, "'classifier' is no ungrouped convolution"),
        ({"conv1_1": []}, "'conv1_1' keeps no channel"),
        ({"conv1_1": [0, 16]}, r"'conv1_1' has channels 0\.\.15"),
        ({"conv1_1": [-1, 3]}, r"'conv1_1' has channels 0\.\.15"),
        ({"conv1_1": [3, 3]}, "'conv1_1' must be strictly increasing"),
        ({"conv1_1": [3, 1]}, "'conv1_1' must be strictly increasing"),
    ],
)
def test_wrong_plans_are_refused(plan, message):
    with pytest.raises(ScapError, match=message):
        cut_network(build_network("vgg16", width=0.25), plan, torch.zeros(1, 3, 32, 32))


def test_coupled_layers_are_refused_by_name():
    network = build_network("resnet20", width=0.25)
    for layer, partner in (
        ("conv1", "layer1.0.conv2"),  # through the padded shortcuts all of them share one stream
        ("layer2.0.conv2", "conv1"),
        ("layer3.2.conv2", "conv1"),
    ):
        with pytest.raises(ScapError, match=f"'{layer}' cannot be pruned alone: it shares .*'{partner}"):
            cut_network(network, {layer: [0]}, torch.zeros(1, 3, 32, 32))


def test_what_cannot_be_removed_alone_is_left_out():
    example = torch.zeros(1, 3, 8, 8)
    outputs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert prunable_layers(outputs, example) == ["0"]
    assert prunable_layers(outputs[:3], example) == ["0"]
    depthwise = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    assert prunable_layers(depthwise, example) == ["2"]
    grouped = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    assert prunable_layers(grouped, example) == []
    together = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    assert prunable_layers(together, example) == ["2"]


def test_an_unused_layer_is_left_out_and_named():
    network = Joined()
    network.spare = nn.Conv2d(3, 4, 3)
    assert prunable_layers(network, torch.zeros(1, 3, 8, 8)) == ["left", "right", "after"]
    with pytest.raises(ScapError, match="'spare' cannot be pruned alone: it is not used"):
        cut_network(network, {"spare": [0]}, torch.zeros(1, 3, 8, 8))


def test_numbers_of_channels_in_forward_are_explained():
    with pytest.raises(ScapError, match=r"'after' cannot be pruned alone: cut, .*shape '\[-1, 6\]' is invalid"):
        cut_network(Joined(fixed=True), {"after": [0, 1, 2, 4]}, torch.zeros(1, 3, 8, 8))


def test_an_example_that_does_not_fit_is_named():
    with pytest.raises(ScapError, match=r"does not run on an example of shape \(1, 1, 32, 32\)"):
        prunable_layers(build_network("vgg16", width=0.125), torch.zeros(1, 1, 32, 32))
