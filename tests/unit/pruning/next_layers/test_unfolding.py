"""Convolutions and linear layers as matrix products."""

import pytest
import torch
from torch import nn

from scap.pruning.next_layers.unfolding import coverage, groups_of, samples, set_weight_matrices, taps_of, weight_matrix


def assert_same_product(layer, inputs):
    layer = layer.double()
    outputs = layer(inputs)
    unfolded, given = samples(layer, inputs, outputs)
    groups = groups_of(layer)
    parts = [part @ weight_matrix(layer, group).T for group, part in enumerate(unfolded.chunk(groups, 1))]
    torch.testing.assert_close(torch.cat(parts, 1) + layer.bias, given)
    return unfolded, given, outputs


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": (3, 5), "stride": (1, 2), "padding": (0, 3)},
        {"kernel_size": 3, "dilation": 2, "padding": 2},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": 1, "groups": 2},
    ],
)
@pytest.mark.parametrize("size", [(6, 7), (16, 9), (33, 30)])
def test_samples_are_what_the_convolution_computes(options, size):
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(4, 6, **options), torch.randn(5, 4, *size, dtype=torch.float64)
    unfolded, given, outputs = assert_same_product(layer, inputs)
    steps = [max(1, round(extent / 8)) for extent in outputs.shape[2:]]
    share = 5 * outputs[0, 0].numel() / (steps[0] * steps[1])
    assert 0.5 * share <= len(given) <= 2 * share
    assert taps_of(layer) == layer.weight[0, 0].numel()
    assert unfolded.shape[1] == 4 * taps_of(layer)


def test_all_positions_of_a_large_map_come_up():
    """Sixteen images of one value a position: together they show each of 32x32 positions once."""
    layer = nn.Conv2d(1, 1, 1).double()
    inputs = torch.arange(32.0 * 32, dtype=torch.float64).view(1, 1, 32, 32).expand(16, 1, 32, 32)
    seen = torch.cat([samples(layer, part, layer(part), first)[0] for first, part in ((0, inputs[:5]), (5, inputs[5:]))])
    assert sorted(seen.flatten().tolist()) == list(range(1024))


def test_all_positions_of_a_linear_layer_come_up():
    """Four images of 256 positions, in two batches: together they show each of them once."""
    layer = nn.Linear(1, 1).double()
    inputs = torch.arange(256.0, dtype=torch.float64).view(1, 256, 1).expand(4, 256, 1)
    seen = torch.cat([samples(layer, part, layer(part), first)[0] for first, part in ((0, inputs[:1]), (1, inputs[1:]))])
    assert sorted(seen.flatten().tolist()) == list(range(256))


def test_linear_layers_of_vectors_and_of_positions():
    torch.manual_seed(0)
    assert_same_product(nn.Linear(7, 3), torch.randn(4, 7, dtype=torch.float64))
    assert_same_product(nn.Linear(7, 3), torch.randn(4, 5, 5, 7, dtype=torch.float64))
    sampled, _, _ = assert_same_product(nn.Linear(2, 3), torch.randn(4, 20, 20, 2, dtype=torch.float64))
    assert 4 * 64 <= len(sampled) <= 4 * 128


def test_float32_stays_and_half_becomes_float32():
    for dtype, expected in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        layer, inputs = nn.Linear(3, 2).to(dtype), torch.randn(4, 3, dtype=dtype)
        assert {values.dtype for values in samples(layer, inputs, layer(inputs))} == {expected}


def test_samples_are_copies():
    layer, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    outputs = layer(inputs).detach()
    unfolded, given = samples(layer, inputs, outputs)
    before = unfolded.clone(), given.clone()
    inputs.zero_()
    outputs.zero_()
    assert torch.equal(unfolded, before[0])
    assert torch.equal(given, before[1])


def test_coverage_is_the_share_of_positions_at_which_a_tap_reads():
    third = coverage(nn.Conv2d(2, 2, 3, padding=1), torch.zeros(1, 2, 3, 1)).view(3, 3)
    expected = torch.tensor([2 / 3, 1, 2 / 3]).double()
    torch.testing.assert_close(third[:, 1], expected)
    assert third[:, [0, 2]].abs().max() == 0
    assert coverage(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), torch.zeros(1, 2, 3, 3)).tolist() == [1] * 9
    assert coverage(nn.Linear(3, 2), torch.zeros(1, 3)).tolist() == [1]


def test_weights_come_back_where_they_were():
    layer = nn.Conv2d(4, 6, 3, groups=2)
    before = layer.weight.detach().clone()
    set_weight_matrices(layer, [2 * weight_matrix(layer, group) for group in range(2)])
    torch.testing.assert_close(layer.weight.detach(), 2 * before)
