"""Runs a network once and follows its channels through every operation."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from scap.models.inputs import Example, call, mapped, outputs_of, tensors_of
from scap.pruning.channels.ledger import Ledger
from scap.pruning.channels.modules import Modules, Way
from scap.pruning.channels.products import convolution, layer_of, matrix_product
from scap.pruning.channels.rules import BATCH_NORM, Call, follow
from scap.pruning.channels.shadow import Shadow, compact

PRODUCTS = {"convolution": convolution, "mm": matrix_product, "addmm": matrix_product, "bmm": matrix_product}


class Tracing(TorchDispatchMode):
    """Sees every operation after it ran; `ledger` receives what it means for the channels.

    `watch` names a module: `met` then holds the ids of all channels that its own operations read.
    """

    def __init__(self, network: nn.Module, ledger: Ledger, watch: str | None = None) -> None:
        super().__init__()
        self.watch, self.met = watch, set[int]()
        self.ledger, self.modules = ledger, Modules(network)
        self.way = Way(self.modules)
        self.returns = False  # whether the network returns anything that can be compared
        named = dict(network.named_parameters()) | dict(network.named_buffers())
        self.shadow = Shadow(named, ledger)
        self.used: set[str] = set()  # layers whose weights were read as they are
        self._outputs: dict[int, tuple[StorageWeakRef, str]] = {}  # memory of a layer's outputs -> the layer
        self._readers: dict[str, list[str]] = {}  # layer -> batch norms ("" for all else) that read its outputs
        self._runs: Counter[str] = Counter()  # batch norm -> how often it runs
        self.computed: dict[str, str] = {}  # modules whose convolution has a computed weight, and the remedy

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        schema = func._schema
        bound = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | (kwargs or {})
        defaults = {argument.name: argument.default_value for argument in schema.arguments}
        outs = [tensor for _, tensor in tensors_of(out)]
        name = schema.name.rpartition("::")[2]
        self.way.note(name, bound.values())
        pointwise = torch.Tag.pointwise in func.tags or (name.endswith("_") and _is_pointwise(name[:-1]))
        call = Call(name, pointwise, schema.is_mutable, defaults | bound, outs, self.modules, self.shadow, self.ledger)
        if self.watch is not None and self.modules.innermost == self.watch:
            self._meet(call)
        self._read(call)
        if product := PRODUCTS.get(name):
            self._note(call, self.modules.weight(name, args))
            product(call)
        elif outs:
            follow(call)
        return out

    def _note(self, call: Call, name: str | None) -> None:
        if name is not None:
            self.used.add(layer_of(name))
            memory = call.outs[0].untyped_storage()
            self._outputs[memory._cdata] = (StorageWeakRef(memory), layer_of(name))  # the reference keeps the key unique
        elif call.name == "convolution":
            here = self.modules.innermost
            self.computed[here] = self.modules.remedy() or f"its weight is computed when {self.modules.words()} runs"

    def _read(self, call: Call) -> None:
        """Who reads the outputs of layers."""
        norm = self.modules.innermost if BATCH_NORM.fullmatch(call.name) else ""
        self._runs[norm] += 1
        for tensor in call.tensors():
            self._reads(tensor, norm)

    def _reads(self, tensor: Tensor, norm: str) -> None:
        if found := self._outputs.get(tensor.untyped_storage()._cdata):
            self._readers.setdefault(found[1], []).append(norm)

    @property
    def norms(self) -> dict[str, str]:
        """Layer -> the batch norm that alone reads its outputs, and reads nothing else, where it has statistics of its own."""
        alone = {layer: readers[0] for layer, readers in self._readers.items() if len(readers) == self._runs[readers[0]] == 1}
        modules = {layer: self.modules.modules[norm] for layer, norm in alone.items()}
        kinds = {layer for layer, module in modules.items() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}
        return {layer: norm for layer, norm in alone.items() if layer in kinds and modules[layer].running_mean is not None}

    def _meet(self, call: Call) -> None:
        for tensor in call.tensors():
            labels = self.shadow.read(tensor) if self.modules.name(tensor) is None and self.shadow.holds(tensor) else None
            if labels is not None:
                self.met |= set(torch.unique(compact(labels)).tolist())

    def follow(self, network: nn.Module, example: Example) -> None:
        """Run the network; what reaches its outputs stays."""
        example = mapped(torch.clone, example)
        given = self.ledger.block("fixed", "the network's input")
        for _, tensor in tensors_of(example):
            self.shadow.write(tensor, torch.tensor(given.start, dtype=torch.int32, device="cpu").expand(tensor.shape))
        with self.modules.watched(), self:
            outputs = call(network, example)
        self.returns = any(True for _ in outputs_of(outputs))
        for path, tensor in tensors_of(outputs):
            self._reads(tensor, "")
            self._ends(path, tensor)

    def _ends(self, path: str, tensor: Tensor) -> None:
        labels = self.shadow.read(tensor) if self.shadow.holds(tensor) else None
        if labels is not None:
            self.ledger.forbid(labels, f"are outputs of the network{f' ({path})' if path else ''}")


def _is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())
