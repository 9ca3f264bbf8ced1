"""Which operations a network runs, where that may depend on values or on training: a rehearsal must have seen them all."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scap.errors import ScapError
from scap.models.inputs import Example, described, first_tensor, fitted, mapped, run, tensors_of
from scap.pruning.channels.modules import Modules
from scap.pruning.check import in_training, without_chance
from scap.pruning.copies import Rehearsal, copied, first_line, skeleton

COPIES = {"_to_copy", "clone", "copy_", "detach", "alias", "lift_fresh", "_unsafe_view", "view", "_reshape_alias"}


class _Noted(TorchDispatchMode):
    """The operations of a run in their order, but for copies and views, and the parameters that they read."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.modules = Modules(network)
        self.operations: list[str] = []
        self.read: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name not in COPIES:
            self.operations.append(name)
        for _, tensor in tensors_of((args, kwargs)):
            self.read |= set(self.modules.names_in(tensor))
        return func(*args, **(kwargs or {}))


def _note(network: nn.Module, example: Example) -> _Noted:
    torch.manual_seed(0)
    with _Noted(network) as noted:
        run(network, example)
    return noted


def refuse_other_ways(network: nn.Module, rehearsal: Rehearsal, example: Example) -> None:
    """ScapError where `network`, with its own values, runs what its rehearsal does not: no cut of that could be tried."""
    seen = _note(rehearsal.network, rehearsal.example)
    own = copied(network).eval().requires_grad_(False).to(rehearsal.dtype)
    device = next((tensor.device for _, tensor in tensors_of(rehearsal.example)), None)
    rehearsed = len(first_tensor(rehearsal.example))
    for images in dict.fromkeys((rehearsed, 2)):
        given = _same_kind(_first(example, images), rehearsal.example, device)
        try:
            found = _note(own, given)
        except Exception as error:  # the user's forward may raise anything
            if images != rehearsed:
                return  # it takes no other number of images
            raise ScapError(f"the network does not run on an example {described(example)}: {first_line(error)}") from error
        layers = {name.rpartition(".")[0] or name for name in found.read - seen.read}
        other = sorted(layers) or sorted(set(found.operations) - set(seen.operations)) * (images == rehearsed)
        if other:
            raise ScapError(
                f"the network chooses by values what it runs: with its own weights and this example it uses {other[0]!r}, with "
                "random ones it does not, so that no cut of it can be tried. Put what is used in the place of the choice"
            )


def trains_otherwise(network: nn.Module, example: Example) -> bool:
    """Whether training, without chance and with fixed statistics, runs other operations than evaluation."""
    try:
        with without_chance(True):
            trained = _note(in_training(skeleton(network)), example).operations
    except Exception:  # the user's forward may raise anything: targets may be missing
        return False
    return trained != _note(network, example).operations


def _first(example: Example, images: int) -> Example:
    return example[:images] if isinstance(example, Tensor) and example.ndim else example


def _same_kind(example: Example, other: Example, device: torch.device | None) -> Example:
    """`example` where `other` is, in its precision."""
    dtypes = [tensor.dtype for _, tensor in tensors_of(other) if tensor.is_floating_point()]
    return fitted(example, device, dtypes[0]) if device and dtypes else mapped(lambda tensor: tensor, example)
