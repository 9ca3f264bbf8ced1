"""Labels of tensors: for every entry of every tensor of a running network the id of the channel that it belongs to.

They live beside the memory of the tensors, entry by entry, so that views and writes into parts of a tensor keep them
without further rules (as memory checkers do for bits).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from scap.pruning.channels.ledger import ELEMENTS, Ledger


class Shadow:
    """The labels of all tensors that are alive; entries of named tensors get ids of their own when first asked for."""

    def __init__(self, named: Mapping[str, Tensor], ledger: Ledger) -> None:
        self.ledger = ledger
        self.names: dict[int, str] = {}
        for name, tensor in named.items():
            self.names.setdefault(_key(tensor), name)
        self._labels: dict[int, tuple[StorageWeakRef, Tensor]] = {}
        self._writes = 0

    def holds(self, tensor: Tensor) -> bool:
        """Whether entries of `tensor` have labels, or are those of a named tensor."""
        key = _key(tensor)
        return key in self.names or (key in self._labels and not self._labels[key][0].expired())

    def read(self, tensor: Tensor) -> Tensor | None:
        """The labels of `tensor`, in its shape and with its strides; None: it has none."""
        key = _key(tensor)
        if key not in self._labels and key in self.names:
            block = self.ledger.block("elements", self.names[key], size=_entries(tensor))
            labels = torch.arange(block.start, block.start + block.size, dtype=torch.int32, device=_device(tensor))
            self._labels[key] = (StorageWeakRef(tensor.untyped_storage()), labels)
        if key not in self._labels:
            return None
        reference, labels = self._labels[key]
        if reference.expired() or _reach(tensor) > len(labels):
            return None
        return labels.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def write(self, tensor: Tensor, labels: Tensor) -> None:
        """Give the entries of `tensor` these labels (of a shape that expands to the tensor's)."""
        key = _key(tensor)
        if key == -1:
            return
        self._sweep()
        if key not in self._labels or self._labels[key][0].expired():
            if tensor.is_contiguous() and _entries(tensor) == tensor.numel():
                own = (
                    labels.to(_device(tensor))
                    .expand(tensor.shape)
                    .to(torch.int32, memory_format=torch.contiguous_format, copy=True)
                )
                self._labels[key] = (StorageWeakRef(tensor.untyped_storage()), own.view(-1))
                return
            empty = torch.zeros(_entries(tensor), dtype=torch.int32, device=_device(tensor))
            self._labels[key] = (StorageWeakRef(tensor.untyped_storage()), empty)
        own = self._labels[key][1]
        if _reach(tensor) <= len(own):
            own.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(labels)

    def _sweep(self) -> None:
        self._writes += 1
        if self._writes % 32 == 0:
            self._labels = {key: entry for key, entry in self._labels.items() if not entry[0].expired()}


def _key(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors and the like have no memory of their own
        return -1


def _device(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _entries(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _reach(tensor: Tensor) -> int:
    if not tensor.numel():
        return 0
    if tensor.is_contiguous():
        return int(tensor.storage_offset()) + tensor.numel()
    return 1 + int(tensor.storage_offset()) + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def varies(labels: Tensor, dim: int) -> bool:
    """Whether the labels differ along this dimension."""
    if labels.size(dim) < 2 or labels.stride(dim) == 0:
        return False
    return bool((labels != labels.narrow(dim, 0, 1)).any())


def compact(labels: Tensor, among: Iterable[int] | None = None) -> Tensor:
    """`labels` with one entry along every dimension (of those in `among`) along which they do not vary."""
    for dim in sorted(range(labels.ndim) if among is None else among, reverse=True):
        if not varies(labels, dim):
            labels = labels.narrow(dim, 0, min(1, labels.size(dim)))
    return labels


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which the labels vary."""
    return [dim for dim, size in enumerate(compact(labels).shape) if size > 1]


def has_channels(labels: Tensor) -> bool:
    """Whether some label is that of a channel (not nothing, not an element of a parameter)."""
    return bool(((labels > 0) & (labels < ELEMENTS)).any())
