"""Architectures: the literature's sizes and names, seeds, and the mistakes that users make."""

import pytest
import torch
from torch import nn

from scap.errors import ScapError
from scap.models.build import ARCHITECTURES, build_network


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


def test_resnet20_has_the_parameters_and_depth_of_the_literature():
    network = build_network("resnet20")
    modules = dict(network.named_modules())
    weighted = [n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert parameters(network) == 272_474
    assert len(weighted) == 20


def test_resnet20_halves_the_maps_at_the_second_and_third_stage():
    network, sizes = build_network("resnet20", width=0.25), {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda m, i, output, name=name: sizes.update({name: output.shape[1:]}))
    network(torch.zeros(2, 3, 32, 32))
    assert sizes["block1_3"] == (4, 32, 32)
    assert sizes["block2_3"] == (8, 16, 16)
    assert sizes["block3_3"] == (16, 8, 8)


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
    with pytest.raises(ScapError, match=r"'vgg61' is unknown.*vgg16, resnet20"):
        build_network("vgg61")


def test_an_unknown_argument_is_named_with_the_known_ones():
    with pytest.raises(ScapError, match=r"'widht'.*classes, in_channels, width"):
        build_network("vgg16", widht=0.5)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ScapError, match="width: 0"):
        build_network("resnet20", width=0)
