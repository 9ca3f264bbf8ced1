"""Cached activations: inputs X and outputs Y of convolutions, streamed to one safetensors file."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from scap.checks import check_choice, check_dense, checked_names
from scap.criterion.chains import Follower, Hooks, Receive
from scap.errors import ScapError
from scap.models.inputs import Example, described, device_and_precision, first_tensor, fitted, gathered, mapped, tensors_of
from scap.models.layers import conv_layers, not_a_layer, weighted_layers
from scap.models.modes import evaluating
from scap.pruning.copies import check_network, copied, undisturbed
from scap.tensors import TensorFile

OUTPUTS = ("activated", "convolution")
PRECISIONS = (torch.float16, torch.float32, torch.float64)
Shapes = dict[tuple[str, str], tuple[int, ...]]


def check_recording(outputs: str, dtype: torch.dtype) -> None:
    """Raise ScapError where activations cannot be recorded so."""
    check_choice(outputs, "outputs", OUTPUTS)
    check_choice(dtype, "dtype", PRECISIONS, "holds no activations")


def record_activations(
    network: nn.Module,
    images: Example,
    layers: Sequence[str],
    path: Path,
    *,
    outputs: str = "activated",
    coupled: bool = False,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    report: Callable[[dict[str, int]], None] | None = None,
) -> None:
    """Write X ("{layer}.inputs": N, C, H, W) and Y ("{layer}.outputs": N, K, H', W') to one safetensors file.

    One pass over `images` (N, channels, H, W; normalised; or a tuple or dict of all arguments, or a DataLoader) in
    evaluation mode, batch by batch, on a copy of `network`. `outputs` says where Y is read: "activated", after the batch
    norm and activation that directly follow the convolution (one user each), or "convolution", its own output. With
    `coupled`, layers may be grouped convolutions and linear layers, too; features of these are taken as channels. `report`
    receives {"images": done, "total": N}. Raises ScapError for unknown, unused or reused layers, for images that are no
    finite floating-point numbers, for a network whose operations depend on the image, and for values that `dtype` cannot
    hold. The file appears only when it is complete.
    """
    check_network(network)
    layers = checked_names(layers, "layers")
    check_layers(network, layers, coupled)
    check_recording(outputs, dtype)
    images = checked_images(gathered(images), batch_size)
    total, fitting = len(first_tensor(images)), device_and_precision(network)
    with undisturbed(network):
        network = evaluating(copied(network))
        recorder = Follower(network, layers) if outputs == "activated" else Hooks(network, layers)
        shapes = _probe(recorder, fitted(part(images, 0, 1), *fitting), layers, coupled)
        tensors = {f"{layer}.{kind}": (total, *shape) for (layer, kind), shape in shapes.items()}
        with TensorFile(path, tensors, dtype) as file:
            for start in range(0, total, batch_size):
                batch = fitted(part(images, start, start + batch_size), *fitting)
                _forward(recorder, batch, lambda layer, kind, values: file.append(f"{layer}.{kind}", values))
                if report is not None:
                    report({"images": min(start + batch_size, total), "total": total})


def part(images: Example, start: int, stop: int) -> Example:
    """Some of the images, in every argument."""
    return mapped(lambda tensor: tensor[start:stop], images)


def checked_images(images: Example, batch_size: int = 1) -> Example:
    """The images; ScapError where they are none that a convolution reads, hold NaN, or differ in number."""
    found = check_counted(images)
    if isinstance(images, Tensor) and (images.ndim != 4 or not images.numel() or not images.is_floating_point()):
        raise ScapError(f"images: {tuple(images.shape)} of {images.dtype}; give normalised floats (N, channels, H, W)")
    if batch_size < 1:
        raise ScapError(f"images: batch_size is {batch_size}; it must be at least 1")
    if not all(tensor.isfinite().all() for tensor in found if tensor.is_floating_point()):
        raise ScapError("images: they hold NaN or infinity; normalise them as in training, or leave these images out")
    return images


def check_counted(images: Example) -> list[Tensor]:
    """The tensors of the images; ScapError where there is none, or where they do not hold the same number of images."""
    found = [tensor for _, tensor in tensors_of(images)]
    if not found:
        kind = type(images).__name__
        raise ScapError(f"images is a {kind}; give a tensor (N, channels, H, W), a tuple or dict of tensors, or a DataLoader")
    for tensor in found:
        check_dense(tensor, "images")
    if not all(tensor.ndim for tensor in found):
        raise ScapError("images: an argument is a single number; give each as a tensor whose first dimension counts the images")
    if len({len(tensor) for tensor in found}) > 1:
        raise ScapError(f"images: the arguments hold different numbers of images; they are {described(images)}")
    return found


def check_layers(network: nn.Module, layers: Sequence[str], coupled: bool = False) -> None:
    """Raise ScapError where one of the layers is no ungrouped convolution of `network` (or of a group)."""
    known = weighted_layers(network) if coupled else conv_layers(network)
    for layer in layers:
        if layer not in known:
            raise ScapError(not_a_layer(network, layer, coupled))


@torch.no_grad()
def _forward(recorder: Hooks | Follower, batch: Example, receive: Receive) -> None:
    recorder.receive = receive
    recorder.run(batch)


def _probe(recorder: Hooks | Follower, image: Example, layers: Sequence[str], coupled: bool) -> Shapes:
    shapes: Shapes = {}
    calls: Counter[str] = Counter()

    def receive(layer: str, kind: str, values: Tensor) -> None:
        if len(values) != 1:
            raise ScapError(f"layer {layer!r} reads {len(values)} maps an image; leave it out")
        shapes[layer, kind] = tuple(values.shape[1:])
        calls[layer] += 1

    _forward(recorder, image, receive)
    for layer in layers:
        if calls[layer] != 2:
            how = "used more than once" if calls[layer] else "not used"
            remedy = "leave out its group, which scap.explain with coupled=True names" if coupled else "leave it out"
            raise ScapError(f"layer {layer!r} is {how} when the network runs; {remedy}")
    return shapes
