"""Pruning in one call: the cut, and what the next layers are told about it."""

import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from scap.models.inputs import gathered
from scap.pruning.compensation import check_compensation, prune_and_compensate
from scap.pruning.next_layers.least_squares import RIDGE
from scap.pruning.plans import Plan
from scap.pruning.surgery import cut_network

if TYPE_CHECKING:
    import pandas as pd


def prune_network(
    network: nn.Module, plan: Plan, images: Any, *, compensate: str = "none", ridge: float = RIDGE, coupled: bool = False
) -> nn.Module:
    """A smaller copy of a network that holds only the channels that a plan keeps (laws 7 and 8 of docs/method.md).

    Whatever reads or follows a pruned layer shrinks alike; layers outside of the plan keep all their channels.

    Args:
        network: Any module; it is not altered.
        plan: Layer (module path) -> the output channels that it keeps, increasing. From `plan_for` or `plan_at`, or written
            by hand.
        images: Inputs (N, channels, H, W) on the network's device, normalised as in training. One is enough for the cut,
            a tuple or dict of all arguments too; compensation takes one tensor, of 512 images or more. A DataLoader is
            read once, whole.
        compensate: How the next layers make up for what went, without training: `none`; `batch-norm` estimates the
            statistics of batch norms again; `channelwise` lets the channels that stay replace the others; `full` solves
            for the next layers' weights (equations 17 to 20).
        ridge: Keeps the weights of `channelwise` and `full` small (equations 18 and 19), a share of their inputs' variance.
            0.1 is better for a network that is trained on; 0.01 replaces more exactly.
        coupled: The plan names groups of layers, each by the first layer that holds all of its channels
            (`prunable_layers(..., coupled=True)`); all layers of a group lose these channels. Where several channels go only
            at once (in groups of a grouped convolution), those stay that go together with one that is kept.

    Returns:
        The pruned network; where it is compensated in evaluation mode. What could not be compensated is a warning, with the
        reasons, and so is what was solved for with more weights than samples. A plan that keeps all channels gives bit-equal
        outputs.

    Raises:
        ScapError: For a layer that does not exist or cannot be pruned (alone, unless `coupled`), for a plan that empties one
            or names channels that do not exist, for images that are not finite, an unknown `compensate`, and
            a `ridge` that is not above 0.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> smaller = scap.prune_network(network, {"0": [0, 2, 5]}, torch.rand(64, 3, 8, 8), compensate="full")
        >>> smaller[0].out_channels, smaller[2].in_channels
        (3, 3)
    """
    check_compensation(compensate, ridge)
    images = gathered(images)
    if compensate == "none":
        return cut_network(network, plan, images, coupled=coupled)
    pruned, done = prune_and_compensate(network, plan, images, how=compensate, ridge=ridge, coupled=coupled)
    fitted = done["done"] != "none"
    _warn("not compensated", done[~fitted])
    _warn("compensated from few images", done[fitted & (done["samples"] < done["inputs"])])
    return pruned


def _warn(what: str, rows: "pd.DataFrame") -> None:
    if len(rows):
        reasons = [f"{row.consumer or row.layers!r}: {row.note}" for row in rows.itertuples()]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        warnings.warn(f"{what}: {'; '.join(reasons[:3])}{more}", stacklevel=3)
