"""Cached activations: inputs X and outputs Y of convolutions, streamed to one safetensors file."""

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from scap.errors import ScapError
from scap.models.layers import conv_layers
from scap.tensors import TensorFile

OUTPUTS = ("activated", "convolution")
# Names of modules, functions and methods alike: lower case, no underscores (relu_ is relu in place).
ACTIVATIONS = re.compile(
    "relu6?|(leaky|p|r)relu|[cs]?elu|gelu|silu|mish|(log)?sigmoid|soft(plus|sign)|"
    "tanh(shrink)?|hard(tanh|swish|sigmoid|shrink)|softshrink|threshold"
)
Receive = Callable[[str, str, Tensor], None]  # layer, kind, values (batch, channels, height, width)
Shapes = dict[tuple[str, str], tuple[int, ...]]


def record_activations(
    network: nn.Module,
    images: Tensor,
    layers: Sequence[str],
    path: Path,
    *,
    outputs: str = "activated",
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    report: Callable[[dict[str, int]], None] | None = None,
) -> None:
    """Write X ("{layer}.inputs": N, C, H, W) and Y ("{layer}.outputs": N, K, H', W') to one safetensors file.

    One pass over `images` (N, channels, H, W; normalised) in evaluation mode, batch by batch, on a copy of
    `network`. `outputs` says where Y is read: "activated", after the batch norm and activation that directly
    follow the convolution (one user each), or "convolution", its own output. `report` receives
    {"images": done, "total": N}. Raises ScapError for unknown, unused or reused layers, for a network that
    cannot be traced, and for values that `dtype` cannot hold. The file appears only when it is complete.
    """
    check_layers(network, layers)
    if outputs not in OUTPUTS:
        raise ScapError(f"outputs: {outputs!r} is unknown; choose from {', '.join(OUTPUTS)}")
    if batch_size < 1 or images.ndim != 4 or not len(images):
        raise ScapError(f"images {tuple(images.shape)} must be (N, C, H, W), N and batch_size at least 1")
    network = copy.deepcopy(network).eval()
    recorder = Follower(network, layers) if outputs == "activated" else Hooks(network, layers)
    parameter = next(network.parameters())  # gives device and precision
    shapes = _probe(recorder, images[:1].to(parameter), layers)
    tensors = {f"{layer}.{kind}": (len(images), *shape) for (layer, kind), shape in shapes.items()}
    with TensorFile(path, tensors, dtype) as file:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            _forward(recorder, batch.to(parameter), lambda layer, kind, values: file.append(f"{layer}.{kind}", values))
            if report is not None:
                report({"images": start + len(batch), "total": len(images)})


def check_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """Raise ScapError where there are no layers, or one of them is no ungrouped convolution of `network`."""
    known = conv_layers(network)
    if not layers:
        raise ScapError("layers: none is given, or the network has none that can be pruned; name an ungrouped convolution")
    for layer in layers:
        if layer not in known:
            raise ScapError(f"layer {layer!r} is no ungrouped convolution; choose from {', '.join(known)}")


class Hooks:
    """Hands on the input and the own output of each layer while the network runs (Y before batch norm)."""

    receive: Receive

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self.run = network
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(self._hook(layer), with_kwargs=True)

    def _hook(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            self.receive(layer, "inputs", args[0] if args else kwargs["input"])
            self.receive(layer, "outputs", output)

        return hook


class Follower(fx.Interpreter):
    """Hands on a layer's input and the last value of its chain, before anything in place overwrites them."""

    receive: Receive

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__(fx.GraphModule(network, _trace(network)))
        self.extra_traceback = False  # it would be appended to our own messages
        wanted = {network.get_submodule(layer): layer for layer in layers}
        self.starts: dict[fx.Node, str] = {}
        self.ends: dict[fx.Node, str] = {}
        for node in self.graph.nodes:
            if node.op == "call_module" and (layer := wanted.get(network.get_submodule(node.target))):
                self.starts[node] = layer
                self.ends[_chain_end(node, network)] = layer

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and hand on what it reads and gives."""
        if n in self.starts:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.receive(self.starts[n], "inputs", args[0] if args else kwargs["input"])
        value = super().run_node(n)
        if n in self.ends:
            self.receive(self.ends[n], "outputs", value)
        return value


class _Tracer(fx.Tracer):
    """Keeps subclasses of convolutions, batch norms and activations whole, wherever they are defined."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, nn.Conv2d | nn.BatchNorm2d) or _is_activation_module(m)
        return known or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(network)
    except Exception as error:  # tracing runs the user's forward with proxies: anything can come out of it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ScapError(
            f"outputs: activated needs a network that torch.fx can trace; this one fails with {reason!r}. "
            "Use outputs: convolution, or rewrite `forward` without control flow that depends on values"
        ) from error


def _chain_end(node: fx.Node, network: nn.Module) -> fx.Node:
    for is_next in (_is_batch_norm, _is_activation):
        if len(node.users) == 1 and is_next(user := next(iter(node.users)), network):
            node = user
    return node


def _is_batch_norm(node: fx.Node, network: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.BatchNorm2d)


def _is_activation(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return _is_activation_module(network.get_submodule(str(node.target)))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op.startswith("call") and ACTIVATIONS.fullmatch(name.replace("_", "")) is not None


def _is_activation_module(module: nn.Module) -> bool:
    names = [cls.__name__ for cls in type(module).__mro__ if cls.__module__ == nn.ReLU.__module__]
    return any(ACTIVATIONS.fullmatch(name.lower()) for name in names)


@torch.no_grad()
def _forward(recorder: Hooks | Follower, batch: Tensor, receive: Receive) -> None:
    recorder.receive = receive
    recorder.run(batch)


def _probe(recorder: Hooks | Follower, image: Tensor, layers: Sequence[str]) -> Shapes:
    shapes: Shapes = {}
    calls: Counter[str] = Counter()

    def receive(layer: str, kind: str, values: Tensor) -> None:
        shapes[layer, kind] = tuple(values.shape[1:])
        calls[layer] += 1

    _forward(recorder, image, receive)
    for layer in layers:
        if calls[layer] != 2:
            how = "used more than once" if calls[layer] else "not used"
            raise ScapError(f"layer {layer!r} is {how} when the network runs; leave it out")
    return shapes
