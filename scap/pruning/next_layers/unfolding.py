"""Convolutions and linear layers as one matrix product: outputs = unfolded inputs · weightᵀ + bias.

A convolution's unfolded input has one row an output position and one column an input channel and tap (c·T + t, as its
weight has); a linear layer's columns are its features. So what reads a channel is a block of columns in both.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = nn.Conv2d | nn.Linear
POSITIONS = 8  # output positions a side that are used of a larger map: every second of 16, every fourth of 32


def layer_at(network: nn.Module, name: str) -> Layer:
    """The convolution or linear layer at a module path."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def taps_of(layer: Layer) -> int:
    """Columns an input channel has: the kernel's area T, 1 for a feature of a linear layer."""
    return layer.weight[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1


def groups_of(layer: Layer) -> int:
    """Groups of a convolution, 1 for a linear layer."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def weight_matrix(layer: Layer, group: int = 0) -> Tensor:
    """The weight of one group as a float64 matrix (outputs of the group, its columns D), a copy."""
    return layer.weight.detach().double().flatten(1).chunk(groups_of(layer))[group].clone()


@torch.no_grad()
def set_weight_matrices(layer: Layer, matrices: list[Tensor]) -> None:
    """Put the weights of all groups, as weight_matrix gives them, back."""
    layer.weight.copy_(torch.cat(matrices).view_as(layer.weight))


def samples(layer: Layer, inputs: Tensor, outputs: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Unfolded inputs (samples, groups · D) and the outputs (samples, O) that belong to them, copies in float32 or float64.

    Of maps larger than POSITIONS a side a lattice of positions is taken, which shifts from image to image, so that all
    positions count alike; `first` is the number of the first image.
    """
    inputs, outputs = _working(inputs), _working(outputs)
    if isinstance(layer, nn.Conv2d):
        unfolded, given = zip(*_read_convolution(layer, inputs, outputs, first), strict=True)
    else:
        unfolded, given = zip(*_read_linear(inputs, outputs, first), strict=True)
    return torch.cat(unfolded), torch.cat(given)


def coverage(layer: Layer, inputs: Tensor) -> Tensor:
    """(T,) share of the output positions at which a tap reads the map and not the padding; ones for a linear layer."""
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros":
        return torch.ones(taps_of(layer), dtype=torch.float64, device="cpu")
    inside = _padded(layer, torch.ones(1, 1, *inputs.shape[2:], dtype=torch.float64, device="cpu"))
    return _windows(layer, inside, (0, 0), (1, 1)).flatten(0, 1).mean(0)


def _working(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _read_convolution(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    steps = [max(1, round(size / POSITIONS)) for size in outputs.shape[2:]]
    padded = _padded(layer, inputs)
    phases = steps[0] * steps[1]
    for phase in range(min(phases, len(inputs))):
        row, column = divmod((first + phase) % phases, steps[1])
        windows = _windows(layer, padded[phase::phases], (row, column), (steps[0], steps[1]))
        read = outputs[phase::phases, :, row :: steps[0], column :: steps[1]]
        yield windows.flatten(0, 1), read.permute(0, 2, 3, 1).flatten(0, 2)


def _padded(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return functional.pad(inputs, [layer.padding[1]] * 2 + [layer.padding[0]] * 2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)


def _windows(layer: nn.Conv2d, padded: Tensor, phase: tuple[int, int], step: tuple[int, int]) -> Tensor:
    """Windows (N, positions, C · T) of padded inputs at every `step`-th output position from `phase` on."""
    for axis in (0, 1):
        kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
        start = padded.narrow(2 + axis, phase[axis] * stride, padded.shape[2 + axis] - phase[axis] * stride)
        padded = start.unfold(2 + axis, dilation * (kernel - 1) + 1, stride * step[axis])[..., ::dilation]
    return padded.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _read_linear(inputs: Tensor, outputs: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    inputs, outputs = (values.reshape(len(values), -1, values.shape[-1]) for values in (inputs, outputs))
    step = max(1, inputs.shape[1] // POSITIONS**2)
    for phase in range(min(step, len(inputs))):
        start = (first + phase) % step
        yield inputs[phase::step, start::step].flatten(0, 1), outputs[phase::step, start::step].flatten(0, 1)
