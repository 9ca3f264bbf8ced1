"""The network of a configuration, before it is trained."""

from typing import Any

from torch import nn

from scap.data.datasets import Dataset
from scap.models.build import build_network
from scap.models.names import PRUNABLE


def build(architecture: dict, dataset: Dataset) -> tuple[nn.Module, dict[str, Any]]:
    """The freshly initialised network for the images and classes of a data set, and the arguments that build it."""
    arguments = {"classes": dataset.classes, "in_channels": dataset.test.shape[0]}
    if architecture["architecture"] in PRUNABLE:
        arguments["width"] = architecture["width"]
    return build_network(architecture["architecture"], **arguments), arguments
