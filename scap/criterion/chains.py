"""Where the outputs of a convolution are read: after the batch norm and activation that directly follow it.

The chain is found by watching one run: which operation reads what each one gives. Networks whose forward depends on
values can be followed as long as every image takes the same way.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scap.errors import ScapError
from scap.models.inputs import Example, tensors_of
from scap.pruning.next_layers.moments import run_on_images

# Names of modules, functions and methods alike: lower case, no underscores (relu_ is relu in place).
ACTIVATIONS = re.compile(
    "relu6?|(leaky|p|r)relu|[cs]?elu|gelu|silu|mish|(log)?sigmoid|soft(plus|sign)|"
    "tanh(shrink)?|hard(tanh|swish|sigmoid|shrink)|softshrink|threshold"
)
Receive = Callable[[str, str, Tensor], None]  # layer, kind, values (batch, channels, height, width)


class Hooks:
    """Hands on the input and the own output of each layer while the network runs (Y before batch norm)."""

    receive: Receive

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self.network = network
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(self._hook(layer), with_kwargs=True)

    def run(self, images: Example) -> None:
        """Run the network."""
        run_on_images(self.network, images)

    def _hook(self, layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            self.receive(layer, "inputs", as_maps(self.network, layer, args[0] if args else kwargs["input"]))
            self.receive(layer, "outputs", as_maps(self.network, layer, output))

        return hook


@dataclass
class Step:
    """One operation, or one call of a convolution, batch norm or activation as a whole."""

    name: str
    reads: list[int]  # numbers of the steps whose results it reads
    layer: str | None = None  # of a convolution that is recorded
    kind: str = ""  # "norm", "activation" or another


@dataclass
class Trace:
    """The steps of one run in their order; the result of each tensor's last writer (in place or not)."""

    steps: list[Step] = field(default_factory=list)
    writers: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)  # so that no two tensors of a run have one `id`
    traced: bool = True  # else only the names count, and no tensor is held

    def add(self, name: str, inputs: Any, output: Any, layer: str | None = None, kind: str = "") -> int | None:
        """Note a step that gives tensors; its number."""
        given = [tensor for _, tensor in tensors_of(output)]
        if not given:
            return None
        reads = [self.writers[id(tensor)] for _, tensor in tensors_of(inputs) if id(tensor) in self.writers]
        self.steps.append(Step(name, reads, layer, kind))
        if self.traced:
            self.writers |= {id(tensor): len(self.steps) - 1 for tensor in given}
            self.alive += given
        return len(self.steps) - 1

    def ends(self) -> dict[int, str]:
        """Step that gives a layer's Y -> layer: the last of its chain, each link the only reader of the one before."""
        readers: dict[int, list[int]] = {}
        for number, step in enumerate(self.steps):
            for read in dict.fromkeys(step.reads):
                readers.setdefault(read, []).append(number)
        found = {}
        for number, step in enumerate(self.steps):
            if step.layer is not None:
                for kind in ("norm", "activation"):
                    after = readers.get(number, [])
                    if len(after) == 1 and self.steps[after[0]].kind == kind:
                        number = after[0]
                found[number] = step.layer
        return found


class Follower(TorchFunctionMode):
    """Hands on a layer's input and the last value of its chain, before anything in place overwrites them."""

    receive: Receive

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.network, self.trace, self._inside = network, Trace(), 0
        self._expected: list[str] | None = None
        self._ends: dict[int, str] = {}
        wanted = {network.get_submodule(layer): layer for layer in layers}
        for module in network.modules():
            kind = "norm" if isinstance(module, nn.BatchNorm2d) else "activation" if _is_activation(module) else ""
            if kind or module in wanted:
                module.register_forward_pre_hook(self._enter(wanted.get(module)), with_kwargs=True)
                module.register_forward_hook(self._leave(wanted.get(module), kind), with_kwargs=True)

    def run(self, images: Example) -> None:
        """Run the network; before the first time once more, to find the chains."""
        if self._expected is None:
            receive, self.receive = self.receive, lambda layer, kind, values: None
            trace = self._run(images, traced=True)
            self._expected, self._ends = [step.name for step in trace.steps], trace.ends()
            self.receive = receive
        if [step.name for step in self._run(images).steps] != self._expected:
            raise ScapError(
                "outputs: activated needs a network that runs the same operations for every image; this one chooses by "
                "values. Use outputs: convolution"
            )

    def _run(self, images: Example, traced: bool = False) -> Trace:
        self.trace, self._inside = Trace(traced=traced), 0
        with self:
            outputs = run_on_images(self.network, images)
        trace, self.trace = self.trace, Trace()
        trace.steps.append(Step("outputs", [trace.writers[id(t)] for _, t in tensors_of(outputs) if id(t) in trace.writers]))
        return trace

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._inside:
            name = getattr(func, "__name__", str(func))
            kind = "activation" if ACTIVATIONS.fullmatch(name.lower().replace("_", "")) else ""
            self._note(name, (args, kwargs), output, None, kind)
        return output

    def _enter(self, layer: str | None) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._inside += 1
            if layer is not None:
                self._hand(layer, "inputs", args[0] if args else kwargs["input"])

        return enter

    def _leave(self, layer: str | None, kind: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            self._inside -= 1
            if not self._inside:
                self._note(type(module).__name__, (args, kwargs), output, layer, kind)

        return leave

    def _note(self, name: str, inputs: Any, output: Any, layer: str | None, kind: str) -> None:
        number = self.trace.add(name, inputs, output, layer, kind)
        if number in self._ends:
            self._hand(self._ends[number], "outputs", output)

    def _hand(self, layer: str, kind: str, values: Tensor) -> None:
        self._inside += 1  # what the receiver does with the values is no step of the network
        self.receive(layer, kind, as_maps(self.network, layer, values))
        self._inside -= 1


def as_maps(network: nn.Module, layer: str, values: Tensor) -> Tensor:
    """(N, channels, H, W): features of a linear layer, the last dimension of its values, are channels."""
    if not isinstance(network.get_submodule(layer), nn.Linear):
        return values
    if values.ndim != 4:
        values = values.reshape(len(values), -1, 1, values.shape[-1])
    return values.movedim(-1, 1)


def _is_activation(module: nn.Module) -> bool:
    names = [cls.__name__ for cls in type(module).__mro__ if cls.__module__ == nn.ReLU.__module__]
    return any(ACTIVATIONS.fullmatch(name.lower()) for name in names)
