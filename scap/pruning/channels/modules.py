"""Which module runs, and which parameter a tensor is: what an operation below them can be named by."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from scap.pruning.copies import remedy

WEIGHTS = {"convolution": 1, "mm": 1, "addmm": 2, "bmm": 1}  # which argument may be a layer's weight
# What a way may do as often as it likes: memory formats and precisions decide on it.
COPIES = {"_to_copy", "clone", "copy_", "detach", "alias", "lift_fresh", "_unsafe_view", "view", "_reshape_alias"}


class Modules:
    """The modules of a network while it runs, innermost last, and its parameters by their memory."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.running: list[str] = []
        self.given: list[Any] = []  # what each of them was called with
        self._names: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in network.named_parameters():
            self._names.setdefault(parameter.untyped_storage()._cdata, []).append((name, parameter))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Know which module runs; after an exception: in which it was raised."""
        self.running, self.given = [], []
        handles = []
        for name, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.running.append(name)
            self.given.append((args, kwargs))

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()
        self.given.pop()

    @property
    def innermost(self) -> str:
        """Path of the module that runs."""
        return self.running[-1] if self.running else ""

    def words(self) -> str:
        """The module that runs, for messages."""
        name = self.innermost
        return (
            f"{name!r} ({type(self.modules[name]).__name__})"
            if name
            else f"the network's own forward ({type(self.network).__name__})"
        )

    def name(self, tensor: Tensor) -> str | None:
        """The name of the parameter that `tensor` is; None: it is none, or a part of one."""
        for name, parameter in self._names.get(tensor.untyped_storage()._cdata, ()):
            same = parameter.shape == tensor.shape and parameter.stride() == tensor.stride()
            if same and parameter.storage_offset() == tensor.storage_offset():
                return name
        return None

    def weight(self, operation: str, args: tuple) -> str | None:
        """The parameter that a convolution or matrix product multiplies by, as it is or transposed."""
        if operation not in WEIGHTS:
            return None
        weight = args[WEIGHTS[operation]] if operation != "bmm" else one_matrix(args[WEIGHTS[operation]])
        return self.name(weight) or (self.name(weight.t()) if weight.ndim == 2 else None)

    def names_in(self, tensor: Tensor) -> list[str]:
        """The parameters that lie in the memory of `tensor`."""
        return [name for name, _ in self._names.get(tensor.untyped_storage()._cdata, ())]

    def owner(self, parameter: str) -> nn.Module:
        """The module that holds a parameter."""
        return self.modules[parameter.rpartition(".")[0]]

    def remedy(self) -> str | None:
        """How to give the module that runs a plain weight again, where something computes it."""
        return remedy(self.innermost, self.modules[self.innermost])


def one_matrix(factor: Tensor) -> Tensor:
    """The factor of a product of batches as the one matrix that it is for the whole batch, where it is one."""
    return factor[0] if factor.ndim == 3 and (factor.size(0) == 1 or factor.stride(0) == 0) else factor


class Way:
    """The operations of a run in their order, but for copies and views, and the parameters that they read."""

    def __init__(self, modules: Modules) -> None:
        self.modules = modules
        self.operations: list[str] = []
        self.read: set[str] = set()

    def note(self, operation: str, arguments: Iterable[Any]) -> None:
        """Add an operation that runs."""
        if operation not in COPIES:
            self.operations.append(operation)
        for tensor in tensors_among(arguments):
            self.read.update(self.modules.names_in(tensor))

    def layers_beside(self, other: "Way") -> list[str]:
        """Modules of which this way reads a parameter that the other does not."""
        return sorted({name.rpartition(".")[0] or name for name in self.read - other.read})

    def operations_beside(self, other: "Way") -> list[str]:
        """Operations that the other way does not have."""
        return sorted(set(self.operations) - set(other.operations))


def tensors_among(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments of an operation, and in lists of them."""
    found = []
    for value in values:
        items = value if isinstance(value, list | tuple) else [value]
        found += [item for item in items if isinstance(item, Tensor)]
    return found
