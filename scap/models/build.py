"""Network architectures by name."""

import inspect
from collections.abc import Callable

from torch import nn

from scap.errors import ScapError
from scap.models.resnet import resnet20, resnet32, resnet44, resnet56
from scap.models.vgg import vgg16

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
}


def build_network(architecture: str, **arguments: float) -> nn.Module:
    """The network named `architecture` in ARCHITECTURES, freshly initialised from the global random state.

    Raises ScapError for an unknown architecture or argument.
    """
    if architecture not in ARCHITECTURES:
        raise ScapError(f"architecture: {architecture!r} is unknown; choose from {', '.join(ARCHITECTURES)}")
    build = ARCHITECTURES[architecture]
    unknown = arguments.keys() - inspect.signature(build).parameters.keys()
    if unknown:
        known = ", ".join(inspect.signature(build).parameters)
        raise ScapError(f"architecture {architecture}: unknown argument {min(unknown)!r}; it takes {known}")
    return build(**arguments)
