"""The channels that a criterion keeps at a size."""

import pandas as pd
from torch import Tensor, nn

from scap.models.layers import conv_layers
from scap.pruning.plans import Plan, layer_scores, plan_at, plan_of_widths
from scap.pruning.sizes import Sizes
from scap.pruning.widths import plan_for, uniform_widths


def make_plan(network: nn.Module, example: Tensor, scores: pd.DataFrame, widths_of: pd.DataFrame | None, cfg: dict) -> Plan:
    """By its own scores; where `widths_of` is given, as many channels per layer as those keep; or the same share of all.

    ScapError where a table is damaged, or not of this network and its convolutions `layers`, where these are given.
    """
    cfg, convs = dict(cfg), conv_layers(network)
    layers = cfg.pop("layers", None)
    channels = None if layers is None else {layer: convs[layer].out_channels for layer in layers}
    for table in [scores] if widths_of is None else [scores, widths_of]:
        layer_scores(table, channels)
    uniform, threshold = cfg.pop("uniform"), cfg.pop("threshold", None)
    rounding = {key: cfg.pop(key) for key in ("multiple", "min_channels")}
    budget = cfg  # what is left of the configuration, where there is no threshold
    decide = scores if widths_of is None else widths_of
    plan = None if threshold is None else plan_at(decide, threshold, **rounding)
    if uniform:
        if plan is not None:
            sizes = Sizes(network, example)
            budget = {"macs": sizes.of(plan)["macs"] / sizes.full["macs"]}
        layers = layers or list(scores["layer"].unique())
        return plan_of_widths(scores, uniform_widths(network, layers, example, **budget, **rounding), **rounding)
    if plan is None:
        plan = plan_for(decide, network, example, **budget, **rounding)
    return plan if widths_of is None else plan_of_widths(scores, {layer: len(kept) for layer, kept in plan.items()}, **rounding)
