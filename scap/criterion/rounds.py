"""Iterative pruning: prune, train, score again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from scap.checks import check_flag, check_function, check_number, checked_names
from scap.criterion.activations import check_counted, part
from scap.criterion.score import score_network
from scap.criterion.settings import AutoencoderSettings, Criterion, checked_settings
from scap.errors import ScapError
from scap.models.inputs import Example, gathered
from scap.models.modes import evaluating
from scap.pruning.compensation import check_compensation
from scap.pruning.copies import check_network
from scap.pruning.counting import count_operations
from scap.pruning.history import applied
from scap.pruning.next_layers.least_squares import RIDGE, TRAINED_RIDGE
from scap.pruning.next_layers.moments import check_images
from scap.pruning.plans import Plan
from scap.pruning.prune import prune_network
from scap.pruning.surgery import explain
from scap.pruning.widths import check_within_reach, checked_budgets, checked_limits, plan_for

Train = Callable[[nn.Module], Any]


class _Limits(NamedTuple):
    """What the plan of a round is held to, by the names that layers have in it."""

    layers: list[str] | None
    floors: dict[str, int]
    ignore: list[str]
    some: bool = True  # whether any layer may lose channels

    def now(self, names: Mapping[str, str]) -> "_Limits":
        """Those of the layers that `names` still has, by their names now."""
        layers = None if self.layers is None else [names[layer] for layer in self.layers if layer in names]
        floors = {names[layer]: floor for layer, floor in self.floors.items() if layer in names}
        ignore = [names[layer] for layer in self.ignore if layer in names]
        return _Limits(layers, floors, ignore, not set(names.values()) <= set(ignore))


def _names_now(network: nn.Module, image: Example, names: Collection[str]) -> dict[str, str]:
    """By which layers groups of `names` are named in a pruned network; without those that are down to their last unit.

    Another name comes up where the first layer that holds all channels of a group did not do so before.
    """
    table = explain(network, image, coupled=True)
    open_ = table[table["prunable"]]
    groups = dict(zip(open_["layer"], open_["group"], strict=True))
    return {name: groups[name] for name in names if name in groups}


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
    what is there. Layers that are down to their last channel stay as they are in later rounds.

    Args:
        network: Any module; it is not altered.
        images: Calibration images (N, channels, H, W), normalised as in training, on the network's device; a tuple or dict
            of tensors for networks of several arguments; a DataLoader is read once, whole.
        rounds: How many.
        macs: Share of the multiply-accumulate operations that is left in the end, in (0, 1].
        params: Share of the parameters that is left in the end; both hold where both are given.
        train: Called with the network after each cut, such as `lambda network: scap.finetune(network, data, settings)`;
            it trains in place, and what it returns is not used.
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
        ScapError: As score_network, plan_for and prune_network, and without a budget; what a round cannot do, such as to
            meet its budget, is told with the round. All arguments are checked before the first one, and whether its smallest
            plan meets the budget before the first training.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> smaller, plan = scap.prune_in_rounds(network, torch.rand(16, 3, 8, 8), 2, macs=0.5, criterion="l1")
        >>> smaller[0].out_channels, len(plan["0"])
        (4, 4)
    """
    check_network(network)
    settings: dict[str, Any] = {"criterion": criterion, "autoencoder": autoencoder, "coupled": coupled}
    checked_settings(criterion, autoencoder)
    check_flag(coupled, "coupled")
    for key, function in {"train": train, "report": report}.items():
        check_function(function, key)
    sizes: dict[str, Any] = {"multiple": multiple, "min_channels": min_channels}
    for key, count in ({"rounds": rounds} | sizes).items():
        check_number(count, key, 1, whole=True)
    budgets = checked_budgets(macs=macs, params=params)
    given = _Limits(None if layers is None else checked_names(layers, "layers"), *checked_limits(floors, ignore))
    ridge = (RIDGE if train is None else TRAINED_RIDGE) if ridge is None else ridge
    check_compensation(compensate, ridge)
    images = gathered(images)
    check_counted(images)
    if compensate != "none":
        check_images(images, 1)
    image = part(images, 0, 1)
    full, pruned, scored, limits = count_operations(network, image), network, list[str](), given
    for number in range(1, rounds + 1):
        before = count_operations(pruned, image)
        left = {key: min(1.0, share ** (number / rounds) * full[key] / before[key]) for key, share in budgets.items()}
        if coupled and number > 1:
            limits = given.now(_names_now(pruned, image, scored))
        plan: Plan = {}
        try:
            if limits.some:
                table = score_network(pruned, images, layers=limits.layers, **settings)
                scored = scored or table["layer"].unique().tolist()
                held = sizes | {"floors": limits.floors, "ignore": limits.ignore}
                plan = plan_for(table, pruned, image, **left, **held)
                if number == 1:  # before hours of training
                    check_within_reach(table, pruned, image, budgets, **held)
        except ScapError as error:
            raise ScapError(f"round {number} of {rounds}: {error}") from error
        pruned = prune_network(pruned, plan, images, compensate=compensate, ridge=ridge, coupled=coupled)
        if train is not None:
            trained = train(pruned)
            if isinstance(trained, nn.Module) and trained is not pruned:
                raise ScapError("train: it returns another network; train the one that it is given, in place")
        after = count_operations(pruned, image)
        if report is not None:
            report({"round": number, "macs": after["macs"] / full["macs"], "params": after["params"] / full["params"]})
    return evaluating(pruned), applied(pruned) or {}
