"""Architectures: the literature's sizes and names, seeds, and the mistakes that users make."""

from itertools import product

import pytest
import torch
from torch import nn

from scap.errors import ScapError
from scap.models.build import ARCHITECTURES, build_network
from scap.models.names import PRUNABLE
from scap.models.resnet import PaddedShortcut
from scap.pruning.surgery import cut_network, prunable_layers


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_vgg16_has_the_parameters_and_layers_of_the_literature():
    network = build_network("vgg16")
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    per_block = enumerate((2, 2, 3, 3, 3), 1)
    assert parameters(network) == 14_728_266
    assert convolutions == [f"conv{block}_{i}" for block, count in per_block for i in range(1, count + 1)]


def test_width_scales_every_convolution_of_vgg16():
    network = build_network("vgg16", width=0.25)
    widths = [module.out_channels for module in network if isinstance(module, nn.Conv2d)]
    assert widths == [16] * 2 + [32] * 2 + [64] * 3 + [128] * 6


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_residual_networks_have_the_parameters_and_depth_of_the_literature(depth, count):
    network = build_network(f"resnet{depth}")
    assert parameters(network) == count
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth


def test_residual_networks_have_the_keys_of_published_checkpoints():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["conv1.weight", *(f"bn1.{entry}" for entry in norm), "linear.weight", "linear.bias"]
    for stage, block, i in product((1, 2, 3), range(5), (1, 2)):
        expected.append(f"layer{stage}.{block}.conv{i}.weight")
        expected += [f"layer{stage}.{block}.bn{i}.{entry}" for entry in norm]
    assert sorted(build_network("resnet32").state_dict()) == sorted(expected)


def test_residual_networks_halve_the_maps_at_the_second_and_third_stage():
    network, sizes = build_network("resnet20", width=0.25), {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda m, i, output, name=name: sizes.update({name: output.shape[1:]}))
    network(torch.zeros(2, 3, 32, 32))
    assert sizes["layer1"] == (4, 32, 32)
    assert sizes["layer2"] == (8, 16, 16)
    assert sizes["layer3"] == (16, 8, 8)


@pytest.mark.parametrize(("channels", "before"), [(6, 1), (7, 1), (4, 0)])
def test_a_shortcut_takes_every_second_pixel_and_pads_the_channels_with_zeros(channels, before):
    images = torch.randn(2, 4, 5, 6)
    outputs = PaddedShortcut(4, channels, stride=2)(images)
    assert outputs.shape == (2, channels, 3, 3)
    assert torch.equal(outputs[:, before : before + 4], images[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    outputs[:, before : before + 4] = 0
    assert not outputs.any()


@pytest.mark.parametrize(("name", "width"), [("vgg16", 0.3), ("resnet20", 1), ("resnet32", 0.3)])
def test_the_layers_known_without_torch_are_those_that_can_be_pruned(name, width):
    assert PRUNABLE.keys() == ARCHITECTURES.keys()
    assert prunable_layers(build_network(name, width=width), torch.zeros(1, 3, 32, 32)) == PRUNABLE[name]


def test_law_8_the_convolution_inside_a_block_is_pruned_alone():
    torch.manual_seed(0)
    network, images = build_network("resnet32", width=0.3).double().eval(), torch.randn(2, 3, 32, 32).double()
    plan = {layer: [0, 2] for layer in PRUNABLE["resnet32"][::2]}
    pruned = cut_network(network, plan, images[:1])
    assert parameters(pruned) < parameters(network)
    for layer, kept in plan.items():  # a channel is removed where nothing reads it any more
        reader = network.get_submodule(layer.removesuffix("1") + "2")
        with torch.no_grad():
            reader.weight[:, [k for k in range(reader.in_channels) if k not in kept]] = 0
    torch.testing.assert_close(pruned(images), network(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_have_one_column_a_class(architecture):
    network = build_network(architecture, classes=7, in_channels=1, width=0.125)
    assert network(torch.zeros(3, 1, 32, 32)).shape == (3, 7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_convolutions_start_with_the_spread_of_kaiming_fan_out(architecture):
    torch.manual_seed(0)
    for module in build_network(architecture).modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert abs(float(module.weight.detach().std()) / expected - 1) < 0.15
            assert module.bias is None or not module.bias.any()


def test_an_unknown_architecture_is_answered_with_the_known_ones():
    with pytest.raises(
        ScapError, match=r"'vgg61' is unknown; did you mean 'vgg16'.*torchvision:NAME, timm:NAME, FILE\.py:FUNCTION"
    ):
        build_network("vgg61")


def test_an_unknown_argument_is_named_with_the_known_ones():
    with pytest.raises(ScapError, match=r"'widht'.*classes, in_channels, width"):
        build_network("vgg16", widht=0.5)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ScapError, match="width: 0"):
        build_network("resnet20", width=0)
