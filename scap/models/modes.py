"""Evaluation mode of any network: a `train` of its own, as detectors have, need not return the network."""

from torch import nn


def evaluating(network: nn.Module) -> nn.Module:
    """The network itself, in evaluation mode."""
    network.eval()
    return network
