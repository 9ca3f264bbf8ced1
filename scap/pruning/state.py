"""The state of a network as plain tensors, and back into a network of the same or of larger layers."""

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from scap.checks import check_dense
from scap.errors import ScapError
from scap.models.layers import replace_tensors, tensors_by_name, weighted_layers, width
from scap.pruning.plans import Plan

NOTES = {"versions": dict, "tied": dict, "encoded": list, "temporary": list, "halved": list, "whole": dict}
NOT_FITTING = "its weights do not fit the network built for it"
REMEDY = "give a `build` that makes the network of this file, unpruned"


@dataclass
class State:
    """Tensors by name, and notes on them that JSON can hold.

    `versions` are those that modules give their state ("" the network's own), `tied` names the tensor that stands for
    another one, `encoded` are states that are no tensors, `temporary` tensors that a state_dict leaves out or renames;
    `halved` are tensors of float32 that are kept in float16, which loses nothing of them; `whole` are the shapes of tensors
    in the unpruned network, where these are known.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any]

    def halved(self) -> "State":
        """The same state in less space: kernels of float32 whose values float16 holds exactly are held in it."""
        kernels = {name: tensor for name, tensor in self.tensors.items() if tensor.dtype == torch.float32 and tensor.ndim > 1}
        small = {name: tensor.half() for name, tensor in kernels.items() if torch.equal(tensor.half().float(), tensor)}
        return State(self.tensors | small, self.notes | ({"halved": sorted(small)} if small else {}))

    def doubled(self) -> "State":
        """The state that `halved` was made of."""
        halved = set(self.notes.get("halved", []))
        return State({name: value.float() if name in halved else value for name, value in self.tensors.items()}, self.notes)

    def whole(self) -> "OrderedDict[str, Any]":
        """What load_state_dict takes, tied tensors at all their names."""
        encoded, temporary = (set(self.notes.get(key, [])) for key in ("encoded", "temporary"))
        named = {name: _decoded(name, value) if name in encoded else value for name, value in self.tensors.items()}
        named |= {name: named[first] for name, first in self.notes.get("tied", {}).items() if first in named}
        state = OrderedDict((name, value) for name, value in named.items() if name not in temporary)
        versions = self.notes.get("versions", {})
        state._metadata = OrderedDict((module, {"version": version}) for module, version in versions.items())  # type: ignore[attr-defined]
        return state

    def shapes(self) -> dict[str, Tensor]:
        """Every tensor of parameters and buffers by name."""
        encoded = set(self.notes.get("encoded", []))
        tied = {name: self.tensors[first] for name, first in self.notes.get("tied", {}).items() if first in self.tensors}
        return {name: tensor for name, tensor in self.tensors.items() if name not in encoded} | tied


def state_of(network: nn.Module) -> State:
    """The state of `network` as copies on the CPU."""
    state = network.state_dict()
    versions = {module: entry.get("version") for module, entry in getattr(state, "_metadata", {}).items()}
    temporary = {name: tensor for name, tensor in tensors_by_name(network).items() if name not in state}
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    places: dict[Any, str] = {}
    encoded = []
    for name, value in (*state.items(), *temporary.items()):
        if not isinstance(value, Tensor):
            tensors[name] = _encoded(name, value)
            encoded.append(name)
            continue
        check_dense(value, f"network: {name!r}")
        place = value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride()
        if value.numel() and places.setdefault(place, name) != name:
            tied[name] = places[place]
        else:
            tensors[name] = value.detach().cpu().clone()
    notes = {"versions": versions, "tied": tied, "encoded": encoded, "temporary": sorted(temporary)}
    return State(tensors, {key: value for key, value in notes.items() if value})


def _encoded(name: str, value: Any) -> Tensor:
    """Any state that torch loads without running code, as bytes."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except (pickle.PickleError, TypeError, AttributeError, RuntimeError) as error:
        words = f"a {type(value).__name__}, which cannot be saved safely; return tensors, numbers, text, lists or dicts"
        raise ScapError(f"network: the state {name!r} (get_extra_state) is {words}") from error
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8).clone()


def _decoded(name: str, value: Tensor) -> Any:
    try:
        return torch.load(io.BytesIO(value.numpy().tobytes()), weights_only=True)
    except Exception as error:  # the bytes of a file may be anything
        raise ScapError(f"the state {name!r} is damaged; make the file again") from error


def fit_shapes(network: nn.Module, state: State, plan: Plan) -> None:
    """Give the parameters and buffers of `network` the shapes and types of `state`, where the plan explains them.

    They come back without values. Raises ScapError where a tensor is another one than the plan makes of the network's, and
    where two that are one in the network have different values.
    """
    found = state.shapes()
    own = tensors_by_name(network)
    _check_tied(own, found)
    _check_rows(network, found, plan)
    modules = dict(network.named_modules(remove_duplicate=False))
    whole = {name: tuple(sizes) for name, sizes in state.notes.get("whole", {}).items()} if plan else {}
    for name in (name for name in own if name in found):
        kernel = isinstance(modules[name.rpartition(".")[0]], _ConvNd)
        _check_shape(name, found[name], own[name], whole.get(name), bool(plan), kernel)
    missing = [name for name in network.state_dict() if name in own and name not in found]
    if missing:
        raise ScapError(f"{NOT_FITTING}: it has no {missing[0]}; {REMEDY}")
    _replace(network, own, found)
    _create_missing(network, found)


def is_complete(network: nn.Module, state: State) -> bool:
    """Whether `state` holds every tensor of a network, so that nothing of it is lost when it is made without memory."""
    other = any(isinstance(value, Tensor) for module in network.modules() for value in vars(module).values())
    return not other and tensors_by_name(network).keys() <= state.shapes().keys()


def _create_missing(network: nn.Module, found: dict[str, Tensor]) -> None:
    """Room for the biases that compensation gave to layers without one, and for buffers that a first pass makes."""
    modules = dict(network.named_modules())
    for name, value in found.items():
        path, _, kind = name.rpartition(".")
        module = modules.get(path)
        if module is None or isinstance(module, _NormBase):  # a norm without statistics is another network
            continue
        if kind in module._buffers and module._buffers[kind] is None:
            module._buffers[kind] = torch.empty_like(value)
        biased = kind == "bias" and isinstance(module, _ConvNd | nn.Linear) and value.is_floating_point()
        if biased and getattr(module, "bias", value) is None:
            module.bias = nn.Parameter(torch.empty_like(value))


def _check_rows(network: nn.Module, found: dict[str, Tensor], plan: Plan) -> None:
    layers = weighted_layers(network)
    for layer in plan.keys() - layers.keys():
        raise ScapError(f"{NOT_FITTING}: its plan names layer {layer!r}, which is no convolution or linear layer; {REMEDY}")
    stored = {layer: found.get(f"{layer}.weight" if layer else "weight") for layer in layers}
    weights = {layer: module._parameters.get("weight") for layer, module in layers.items()}
    # Layers of one weight have one plan, whether it is one in the network or in the file.
    plans = {id(held[layer]): kept for held in (stored, weights) for layer, kept in plan.items() if held[layer] is not None}
    for layer, given in stored.items():
        channels, rows = width(layers[layer]), None if given is None else given.shape[:1].numel()
        kept = plans.get(id(weights[layer]), plans.get(id(given), range(channels)))
        if rows is not None and (rows != len(kept) or max(kept, default=-1) >= channels):
            words = f"{rows} output channels there, {len(kept)} of {channels} by its plan"
            raise ScapError(f"{NOT_FITTING}: {layer!r} has {words}; {REMEDY}")


def _check_tied(own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """ScapError where the network has one tensor for two of different values."""
    first: dict[int, str] = {}
    for name, given in ((name, found[name]) for name in own if name in found):
        other = first.setdefault(id(own[name]), name)
        if found[other] is not given and not torch.equal(found[other], given):
            raise ScapError(f"{NOT_FITTING}: {other} and {name} are two tensors there, one tensor here; {REMEDY}")


def _check_shape(name: str, given: Tensor, own: Tensor, whole: tuple[int, ...] | None, pruned: bool, kernel: bool) -> None:
    """ScapError where a tensor is not the network's own, or what a plan may leave of it (of the shape `whole`, if known)."""
    if own.numel() <= 1 and not isinstance(own, nn.Parameter):  # the place of a buffer that a first pass fills
        return
    if whole in (None, tuple(own.shape)) and (given.shape == own.shape or (pruned and _fewer(given, own, kernel))):
        return
    before = f", {whole} before it was pruned" if whole else ""
    words = f"{name} is {tuple(given.shape)} there{before}, but {tuple(own.shape)} here"
    raise ScapError(f"{NOT_FITTING}: {words}; {REMEDY}")


def _fewer(given: Tensor, own: Tensor, kernel: bool) -> bool:
    """Whether `given` may be `own` with fewer channels: kernels keep their sizes."""
    fewer = given.ndim == own.ndim and all(0 < a <= b for a, b in zip(given.shape, own.shape, strict=True))
    return fewer and not (kernel and given.shape[2:] != own.shape[2:])


def _replace(network: nn.Module, own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Empty tensors in place of those without memory and of those of another shape or type; tied ones stay tied."""
    other: dict[int, Tensor] = {}
    for name, tensor in own.items():
        given = found.get(name)
        if given is not None and (tensor.is_meta or given.shape != tensor.shape or given.dtype != tensor.dtype):
            empty = torch.empty_like(given, device="cpu" if tensor.is_meta else tensor.device)
            other[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    replace_tensors(network, other)


def fill(network: nn.Module, state: State) -> None:
    """Copy the values of `state` into a network of its shapes."""
    try:
        network.load_state_dict(state.whole(), strict=True)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        hint = f"{REMEDY}; where a first pass makes tensors, let `build` run the network once"
        raise ScapError(f"{NOT_FITTING}: {words}; {hint if 'Unexpected key' in words else REMEDY}") from error
    own, found = tensors_by_name(network), state.shapes()
    for name in state.notes.get("temporary", []):
        if name in own and name in found and own[name].shape == found[name].shape:
            with torch.no_grad():
                own[name].copy_(found[name])
