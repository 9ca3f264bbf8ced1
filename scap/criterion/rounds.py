"""Iterative pruning: prune, train, score again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from scap.checks import check_number
from scap.criterion.score import score_network
from scap.criterion.settings import AutoencoderSettings, Criterion, checked_settings
from scap.errors import ScapError
from scap.models.inputs import gathered
from scap.models.modes import evaluating
from scap.pruning.compensation import check_compensation
from scap.pruning.counting import count_operations
from scap.pruning.history import applied
from scap.pruning.next_layers.least_squares import RIDGE, TRAINED_RIDGE
from scap.pruning.plans import Plan
from scap.pruning.prune import prune_network
from scap.pruning.widths import plan_for

Train = Callable[[nn.Module], Any]


def prune_in_rounds(
    network: nn.Module,
    images: Any,
    rounds: int,
    *,
    macs: float | None = None,
    params: float | None = None,
    train: Train | None = None,
    criterion: Criterion = None,
    autoencoder: AutoencoderSettings | None = None,
    layers: Sequence[str] | None = None,
    coupled: bool = False,
    compensate: str = "none",
    ridge: float | None = None,
    multiple: int = 1,
    min_channels: int = 1,
    floors: Mapping[str, int] | None = None,
    ignore: Collection[str] = (),
    report: Callable[[dict[str, float]], None] | None = None,
) -> tuple[nn.Module, Plan]:
    """Prune in several rounds, each by scores of the network that the round before left.

    After round r of n a network has the share macs^(r/n) of its operations, so that each round removes as large a part of
    what is there.

    Args:
        network: Any module; it is not altered.
        images: Calibration images (N, channels, H, W), normalised as in training, on the network's device; a DataLoader
            is read once, whole.
        rounds: How many.
        macs: Share of the multiply-accumulate operations that is left in the end, in (0, 1].
        params: Share of the parameters that is left in the end; both hold where both are given.
        train: Called with the network after each cut, such as `lambda network: scap.finetune(network, data, settings)`;
            it trains in place.
        criterion: As in `score_network`.
        autoencoder: As in `score_network`.
        layers: As in `score_network`.
        coupled: As in `score_network` and `prune_network`; the composed plan then names every layer of a group.
        compensate: As in `prune_network`.
        ridge: As in `prune_network`; by default 0.1 with `train`, as networks that are trained on need, else 0.01.
        multiple: As in `plan_for`.
        min_channels: As in `plan_for`.
        floors: As in `plan_for`.
        ignore: As in `plan_for`.
        report: Receives after each round `round` (from 1), `macs` and `params`, the shares that are left.

    Returns:
        The pruned network in evaluation mode, and the one plan that does what all rounds did, by the channels' numbers in
        the unpruned network. `save_network` writes it beside the weights without being told.

    Raises:
        ScapError: As score_network, plan_for and prune_network, and without a budget; where the budget of a round cannot be
            met, it says of which.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> smaller, plan = scap.prune_in_rounds(network, torch.rand(16, 3, 8, 8), 2, macs=0.5, criterion="l1")
        >>> smaller[0].out_channels, len(plan["0"])
        (4, 4)
    """
    checked_settings(criterion, autoencoder)
    check_number(rounds, "rounds", 1, whole=True)
    budgets = {key: share for key, share in {"macs": macs, "params": params}.items() if share is not None}
    for key, share in budgets.items():
        check_number(share, key, 0, 1)
    if not budgets:
        raise ScapError("no budget is given; say macs= or params=, the share that is left")
    ridge = (RIDGE if train is None else TRAINED_RIDGE) if ridge is None else ridge
    check_compensation(compensate, ridge)
    images = gathered(images)
    limits: dict[str, Any] = {"multiple": multiple, "min_channels": min_channels, "floors": floors, "ignore": ignore}
    full = count_operations(network, images[:1])
    pruned = network
    for number in range(1, rounds + 1):
        table = score_network(pruned, images, layers=layers, coupled=coupled, criterion=criterion, autoencoder=autoencoder)
        before = count_operations(pruned, images[:1])
        left = {key: min(1.0, share ** (number / rounds) * full[key] / before[key]) for key, share in budgets.items()}
        try:
            plan = plan_for(table, pruned, images[:1], **left, **limits)
        except ScapError as error:
            raise ScapError(f"round {number} of {rounds}: {error}") from error
        pruned = prune_network(pruned, plan, images, compensate=compensate, ridge=ridge, coupled=coupled)
        if train is not None:
            train(pruned)
        after = count_operations(pruned, images[:1])
        if report is not None:
            report({"round": number, "macs": after["macs"] / full["macs"], "params": after["params"] / full["params"]})
    return evaluating(pruned), applied(pruned) or {}
