"""Compensation of a cut without training: the layers that read removed channels are told how the others replace them.

docs/conditional.md, equations C7 to C9. Consumers are treated from the first to the last; what they read comes from the
network as pruned and compensated so far, what they should give from the original one.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scap.checks import check_choice, check_number
from scap.errors import ScapError
from scap.models.modes import evaluating
from scap.pruning.copies import check_network, copied, undisturbed
from scap.pruning.history import last_applied
from scap.pruning.next_layers.batch_norms import estimate_batch_norms
from scap.pruning.next_layers.consumers import find_consumers
from scap.pruning.next_layers.least_squares import LARGEST_RIDGE, RIDGE, Fit, fit
from scap.pruning.next_layers.moments import Moments, check_images, chunks, stream
from scap.pruning.next_layers.targets import Cut, find_cuts
from scap.pruning.next_layers.unfolding import layer_at, samples, set_weight_matrices
from scap.pruning.plans import Plan
from scap.pruning.surgery import cut_network

if TYPE_CHECKING:
    import pandas as pd

COMPENSATIONS = ("none", "batch-norm", "channelwise", "full")
MEMORY = 2**30  # bytes of the original network's activations that one pass gathers
LARGEST = 20_000  # inputs of a consumer whose Gram matrix is still solved (3.2 GB)
Row = dict[str, Any]


def prune_and_compensate(
    network: nn.Module,
    plan: Plan,
    images: Tensor,
    how: str = "full",
    *,
    coupled: bool = False,
    batch_size: int = 64,
    ridge: float = RIDGE,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> tuple[nn.Module, "pd.DataFrame"]:
    """A pruned copy of `network` (scap.prune_network) whose remaining channels make up for those removed, untrained.

    Args:
        network: the network, which is not altered.
        plan: layer -> output channels kept.
        images: calibration images (N, channels, H, W), normalised as in training; 512 or more are advised.
        how: `none`; `batch-norm`, statistics estimated again; `channelwise`, each removed channel reconstructed from those
            that stay, then `batch-norm`; `full`, least squares of the consumer's outputs on its unfolded inputs.
        coupled: the plan names groups of layers by their first ones, as in scap.prune_network.
        batch_size: images a forward pass.
        ridge: of `full`, towards the channelwise solution, as a share of the mean variance of an input; its square of the
            channelwise solution. 0.1 keeps the weights smaller, for a network that is trained on.
        report: receives {"layer": done, "total": layers}.

    Returns:
        The pruned network in evaluation mode, and a table of what was done: one row a consumer that reads removed channels
        (`consumer`, `layers`, `done`, `inputs`, `samples`, `error_before`, `error_after`, `note`), errors relative to the
        energy of its outputs, on the calibration images. What could not be compensated has done = none and says why.

    Raises:
        ScapError: for a plan that does not fit, images or activations that are not finite, and an unknown `how`.
    """
    check_compensation(how, ridge)
    if how != "none":
        check_images(images, batch_size)
    pruned = evaluating(cut_network(network, plan, images[:1], coupled=coupled))
    plan = last_applied(pruned) or {}  # of each group the layer that it is named by
    table = compensate(network, pruned, plan, images, how, coupled=coupled, batch_size=batch_size, ridge=ridge, report=report)
    return pruned, table


def compensate(
    network: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    images: Tensor,
    how: str = "full",
    *,
    coupled: bool = False,
    batch_size: int = 64,
    ridge: float = RIDGE,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> "pd.DataFrame":
    """Alter `pruned`, which cut_network made from `network` by `plan`, in place; the rest as in prune_and_compensate."""
    import pandas as pd

    check_network(network)
    with undisturbed(network):
        network, removed = evaluating(copied(network)), _removed(network, plan)
        pruned.eval()
        rows: list[Row] = []
        if how in ("channelwise", "full") and removed:
            readers = find_consumers(network, list(removed), images[:1], coupled=coupled)
            gone = {layer: found.gone(plan[layer]) for layer, found in readers.items()}
            cuts, left = find_cuts(network, pruned, readers, gone, images[:1])
            rows += [_row(layers=layer, note=found.obstacle) for layer, found in readers.items() if found.obstacle]
            rows += [_row(consumer=name, note=why) for name, why in left.items()]
            rows += _treat_all(network, pruned, cuts, images, how, batch_size, ridge, report)
        if how in ("batch-norm", "channelwise") and removed:
            names = estimate_batch_norms(network, pruned, images, batch_size)
            rows += [_row(consumer=name, done="batch-norm", samples=len(images)) for name in names]
    return pd.DataFrame(rows, columns=list(_row()))


def check_compensation(how: str, ridge: float) -> None:
    """Raise ScapError for an unknown compensation, and for a ridge that is no number above 0."""
    check_choice(how, "compensate", COMPENSATIONS)
    check_number(ridge, "ridge", 0, LARGEST_RIDGE)
    if not ridge:
        raise ScapError("ridge is 0; it must be above 0")


def _row(**values: Any) -> Row:
    """A row of the table; `inputs` are those that stay."""
    empty = {"consumer": "", "layers": "", "done": "none", "inputs": 0, "samples": 0}
    return empty | {"error_before": float("nan"), "error_after": float("nan"), "note": ""} | values


def _removed(network: nn.Module, plan: Plan) -> dict[str, set[int]]:
    """Layer -> channels that the plan removes, where there are any."""
    found = {layer: set(range(len(network.get_parameter(f"{layer}.weight")))) - set(kept) for layer, kept in plan.items()}
    return {layer: channels for layer, channels in found.items() if channels}


def _treat_all(
    network: nn.Module,
    pruned: nn.Module,
    cuts: list[Cut],
    images: Tensor,
    how: str,
    batch_size: int,
    ridge: float,
    report: Callable[[Mapping[str, float]], None] | None,
) -> list[Row]:
    rows = []
    few = _wanted(network, cuts, images[:2], 2)
    for run in chunks([len(images) * sum(values.nbytes for values in few[cut.name][0]) // 2 for cut in cuts], MEMORY):
        chosen = [cuts[index] for index in run]
        wanted = _wanted(network, chosen, images, batch_size)
        for cut in chosen:
            rows.append(_treat(pruned, cut, wanted.pop(cut.name), images, batch_size, how, ridge))
            if report is not None:
                report({"layer": len(rows), "total": len(cuts)})
    return rows


Wanted = dict[str, list[tuple[Tensor, ...]]]  # consumer -> per batch: its outputs that stay, then per group the channels


def _wanted(network: nn.Module, cuts: list[Cut], images: Tensor, batch_size: int) -> Wanted:
    """What the original network gives at each cut."""
    by_name = {cut.name: cut for cut in cuts}
    wanted: Wanted = {name: [] for name in by_name}

    def receive(name: str, read: Tensor, outputs: Tensor, first: int) -> None:
        cut, layer = by_name[name], layer_at(network, name)
        unfolded, given = samples(layer, read, outputs, first)
        parts = unfolded.chunk(len(cut.targets), 1)
        channels = [_channels(layer, part, target.old) for part, target in zip(parts, cut.targets, strict=True)]
        wanted[name].append((given[:, cut.outputs.to(given.device)], *channels))

    if cuts:
        stream(network, images, by_name, receive, batch_size)
    return wanted


def _channels(layer: nn.Module, unfolded: Tensor, columns: Tensor) -> Tensor:
    """(n', R) values of channels: what a convolution's central tap reads, or all pixels of flattened maps."""
    if isinstance(layer, nn.Conv2d):
        columns = columns[:, columns.shape[1] // 2 :][:, :1]
    return unfolded[:, columns.to(unfolded.device)].mT.flatten(0, 1)


def _treat(
    pruned: nn.Module, cut: Cut, wanted: list[tuple[Tensor, ...]], images: Tensor, batch_size: int, how: str, ridge: float
) -> Row:
    inputs = max(len(target.kept) for target in cut.targets)
    row = _row(consumer=cut.name, layers=", ".join(cut.layers), inputs=inputs)
    if inputs > LARGEST:
        return row | {"note": f"it keeps {inputs} inputs, more than the {LARGEST} that are solved: remove more of them"}
    moments = [(Moments(centred=True), Moments(centred=True)) for _ in cut.targets]
    given = iter(wanted)
    layer = layer_at(pruned, cut.name)

    def receive(name: str, read: Tensor, outputs: Tensor, first: int) -> None:
        unfolded, _ = samples(layer, read, outputs, first)
        wished, *channels = next(given)
        parts = unfolded.split([len(target.kept) for target in cut.targets], 1)
        wishes = wished.split([len(target.weights) for target in cut.targets], 1)
        for (left, right), target, part, wish, old in zip(moments, cut.targets, parts, wishes, channels, strict=True):
            left.add(torch.cat([part, wish], 1))
            right.add(torch.cat([_channels(layer, part, target.new), old], 1))

    stream(pruned, images, [cut.name], receive, batch_size)
    fits = [fit(target, *pair, how, ridge, cut.name) for target, pair in zip(cut.targets, moments, strict=True)]
    energy = sum(fitted.energy for fitted in fits) or float("nan")
    before, after = (sum(errors) / energy for errors in zip(*((f.before, f.after) for f in fits), strict=True))
    notes = [_put(pruned, cut, fits), _few(moments[0][0].count, inputs)]
    row |= {"done": how, "samples": moments[0][0].count, "error_before": before, "error_after": after}
    return row | {"note": "; ".join(filter(None, notes))}


def _few(count: int, inputs: int) -> str:
    return f"{count} samples for {inputs} inputs: use more images" if count < inputs else ""


@torch.no_grad()
def _put(pruned: nn.Module, cut: Cut, fits: list[Fit]) -> str:
    """Put the weights in their place, the constants into the bias, or the mean of the batch norm that follows."""
    layer = layer_at(pruned, cut.name)
    set_weight_matrices(layer, [fitted.weights for fitted in fits])
    bias = torch.cat([fitted.bias for fitted in fits])
    if layer.bias is not None:
        layer.bias.copy_(bias)
    elif cut.norm is not None:
        pruned.get_submodule(cut.norm).get_buffer("running_mean").sub_(bias)
    else:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
        return "a bias was created"
    return ""
