"""The channels that a criterion keeps at a threshold."""

import pandas as pd
from torch import Tensor, nn

from scap.models.layers import conv_layers
from scap.pruning.plans import Plan, plan_at, plan_of_widths
from scap.pruning.widths import uniform_widths


def make_plan(
    network: nn.Module, example: Tensor, scores: pd.DataFrame, widths_of: pd.DataFrame | None, uniform: bool, cfg: dict
) -> Plan:
    """By its own scores; where `widths_of` is given, as many per layer as those keep, or the same share of all layers."""
    convs = conv_layers(network)
    channels = {layer: convs[layer].out_channels for layer in cfg["layers"]}
    plan = plan_at(scores if widths_of is None else widths_of, cfg["threshold"], cfg["multiple"], channels=channels)
    if widths_of is None:
        return plan
    widths = {layer: len(kept) for layer, kept in plan.items()}
    if uniform:
        widths = uniform_widths(network, plan, example, cfg["multiple"])
    return plan_of_widths(scores, widths, cfg["multiple"], channels=channels)
