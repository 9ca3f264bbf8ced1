"""Evaluation mode of any network: a `train` of its own, as detectors have, need not return the network."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def evaluating(network: nn.Module) -> nn.Module:
    """The network itself, in evaluation mode."""
    network.eval()
    return network


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[nn.Module]:
    """The network itself, in evaluation mode for a while; each of its modules is in its own mode afterwards, come what may."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield evaluating(network)
    finally:
        for module, mode in modes.items():
            module.training = mode
