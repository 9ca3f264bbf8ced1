"""Network architectures by name: built in, from torchvision or timm, or from a function of one's own."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scap.errors import ScapError
from scap.models.modes import evaluating
from scap.models.names import check_architecture, own_function
from scap.models.packages import own_network, timm_network, torchvision_network
from scap.models.resnet import resnet20, resnet32, resnet44, resnet56
from scap.models.vgg import vgg16

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
}


def build_network(architecture: str, *, weights: str | None = None, **arguments: Any) -> nn.Module:
    """Build a network, freshly initialised from the global random state, or with weights that its package offers.

    Args:
        architecture: A name in ARCHITECTURES, `torchvision:NAME`, `timm:NAME`, or `FILE.py:FUNCTION` for a function
            of one's own that returns a network. Its code is run.
        weights: "DEFAULT" downloads the weights that torchvision or timm recommend; for torchvision also one of the
            names that it lists ("IMAGENET1K_V1"). Files are for scap.models.checkpoints.load_checkpoint.
        **arguments: Keyword arguments. `classes` and `in_channels` fit all: torchvision and timm get them under their
            names, a function of one's own where it has such parameters. Built-in architectures also take `width`,
            which multiplies all numbers of channels.

    Returns:
        The network, in training mode.

    Raises:
        ScapError: For an architecture, package, file, function or argument that does not exist, for a function that
            returns no network, and for weights that cannot be downloaded.
    """
    check_architecture(architecture)
    package, _, name = architecture.partition(":")
    if architecture not in ARCHITECTURES and own_function(architecture) is None:
        build = torchvision_network if package == "torchvision" else timm_network
        return build(name, weights, **arguments)
    if weights is not None:
        raise ScapError(f"weights: {weights!r} is for torchvision and timm; for {architecture} give a checkpoint's file")
    if own := own_function(architecture):
        return own_network(*own, **arguments)
    known = inspect.signature(ARCHITECTURES[architecture]).parameters
    if unknown := arguments.keys() - known:
        raise ScapError(f"architecture {architecture}: unknown argument {min(unknown)!r}; it takes {', '.join(known)}")
    return ARCHITECTURES[architecture](**arguments)


@torch.no_grad()
def check_logits(network: nn.Module, shape: Sequence[int], classes: int) -> None:
    """Check that a network classifies images: (N, C, H, W) -> logits (N, classes).

    Args:
        network: Any network; a copy of it is run.
        shape: (C, H, W) of an image.
        classes: Number of classes in the data set.

    Raises:
        ScapError: Where the network does not run on such images, or returns something else.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    try:
        output = evaluating(copy.deepcopy(network))(torch.zeros(1, *shape).to(parameter))
    except Exception as error:  # the network may be anyone's
        reason = " ".join(str(error).split())
        raise ScapError(f"architecture: the network does not run on images of shape {tuple(shape)}: {reason}") from error
    if not isinstance(output, Tensor):
        raise ScapError(f"architecture: the network returns {type(output).__name__}; a classifier returns a tensor of logits")
    if output.shape != (1, classes):
        found = f"gives {tuple(output.shape)} for one image"
        raise ScapError(f"architecture: the network {found}; the {classes} classes of the data set need (1, {classes})")
