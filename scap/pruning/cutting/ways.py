"""Which operations a network runs, where values or training may decide: a rehearsal must have seen them all."""

from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scap.errors import ScapError
from scap.models.inputs import Example, device_and_precision, first_tensor, fitted, run
from scap.models.modes import evaluating
from scap.pruning.channels.modules import Modules, Way
from scap.pruning.copies import Rehearsal, copied, in_precision, reseed, running
from scap.pruning.cutting.check import in_training, without_chance


class _Noting(TorchDispatchMode):
    def __init__(self, *ways: Way) -> None:
        super().__init__()
        self.ways = ways

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        for way in self.ways:
            way.note(func._schema.name.rpartition("::")[2], (*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


class OwnWay:
    """The way of a network with its own values through two images of the example, where there are so many."""

    def __init__(self, network: nn.Module, example: Example) -> None:
        self.network = evaluating(copied(network)).requires_grad_(False)
        self.original = Way(Modules(network))  # reads nothing, unless something in the copy leads there
        self.example = fitted(example, *device_and_precision(network))
        self.given = _first(self.example, 2)
        try:
            self.way = self._note(self.given)
        except Exception:  # the user's forward may raise anything: it may need the whole example
            self.given = self.example
            self.way = self._tried(self.given)
        if self.original.read:
            raise ScapError(
                f"network: it cannot be copied: a copy of it reads the original's {min(self.original.read)!r}, to which "
                "a function or a reference in it leads; write the function as a method, or call the module by its name"
            )

    def _note(self, example: Example) -> Way:
        reseed()
        way = Way(Modules(self.network))
        with _Noting(way, self.original):
            run(self.network, example)
        return way

    def _tried(self, example: Example) -> Way:
        with running(example):
            return self._note(example)

    def check(self, rehearsed: Way, rehearsal: Rehearsal) -> None:
        """ScapError where this way has what the rehearsed one has not: no cut of that could be tried."""
        other = self.way.layers_beside(rehearsed)
        if not other and self.way.operations_beside(rehearsed):  # in other precision, for another number of images?
            alike = OwnWay(*self.as_precise_as(rehearsal))
            other = alike.way.operations_beside(rehearsed)
        if other:
            raise ScapError(
                f"the network chooses by values what it runs: with its own weights and this example it uses {other[0]!r}, with "
                "random ones it does not, so that no cut of it can be tried. Put what is used in the place of the choice"
            )

    def as_precise_as(self, rehearsal: Rehearsal) -> tuple[nn.Module, Example]:
        """A copy of the network, and as many images of its own, both in the precision of the rehearsal."""
        network = in_precision(copied(self.network), rehearsal.dtype)
        example = _first(self.example, len(first_tensor(rehearsal.example)))
        return network, fitted(example, *device_and_precision(network))

    @cached_property
    def trains_otherwise(self) -> bool:
        """Whether training, without chance and with fixed statistics, runs other operations than evaluation."""
        try:
            with without_chance(True):
                in_training(self.network)
                return self._note(self.given).operations != self.way.operations
        except Exception:  # the user's forward may raise anything: targets may be missing
            return False
        finally:
            self.network.eval()


def _first(example: Example, images: int) -> Example:
    return example[:images] if isinstance(example, Tensor) and example.ndim else example
