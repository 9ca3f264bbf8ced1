"""ONNX files of networks, compared with them before they are written."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from scap.checks import check_path
from scap.errors import ScapError
from scap.models.inputs import Example, described, device_and_precision, first_tensor, fitted, mapped, run, tensors_of
from scap.models.modes import evaluating
from scap.pruning.copies import check_network, copied, first_line, running, undisturbed
from scap.pruning.cutting.check import relative_difference
from scap.writing import write_whole

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `onnx`
TOLERANCE = 1e-4  # of float32, relative to the largest value of an output
COARSE = 2e-2  # of half precision


def export_onnx(network: nn.Module, path: str | Path, example: Example, *, any_batch: bool = True) -> float:
    """Write a network, pruned or not, to one ONNX file that onnxruntime computes the same outputs from.

    The file is compared with the network before it is written: on the example and, with `any_batch`, on one image more.
    Needs the extra `onnx`.

    Args:
        network: Any module that torch.export can trace; it is exported in evaluation mode and not altered.
        path: The file; its folder is made.
        example: An input: a tensor (N, channels, H, W), or a tuple or dict of all arguments.
        any_batch: Whether the file takes any number of images. False fixes the example's number, for networks whose code
            does.

    Returns:
        The largest difference between onnxruntime's outputs and the network's, relative to the largest value of the
        output; at most 1e-4 (in half precision 2e-2).

    Raises:
        ScapError: Where the packages of the extra `onnx` are missing, the network cannot be exported, onnxruntime's
            outputs differ by more, and where the file cannot be written.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> scap.export_onnx(network, "network.onnx", torch.zeros(1, 3, 8, 8)) < 1e-4
        True
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ScapError(f"export_onnx: {', '.join(missing)} not installed; run: pip install '.[onnx]'")
    check_path(path)
    check_network(network)
    first_tensor(example)
    with undisturbed(network):
        network = evaluating(copied(network).cpu())
        example = fitted(example, *device_and_precision(network))
        examples = [example, _one_more(example)] if any_batch else [example]
        _try(network, examples)
        data = _exported(network, examples[-1], any_batch)
        difference = max(_difference(network, data, each) for each in examples)
    write_whole(path, data)
    return difference


def _one_more(example: Example) -> Example:
    """The example with its first image once more: torch.export would fix a batch of one image."""
    return mapped(lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor, example)


def _try(network: nn.Module, examples: list[Example]) -> None:
    for example in examples:
        with running(example):
            run(network, example)


def _exported(network: nn.Module, example: Example, any_batch: bool) -> bytes:
    positional = example if isinstance(example, tuple) else () if isinstance(example, dict) else (example,)
    named = dict(example) if isinstance(example, dict) else None
    shapes = mapped(lambda tensor: {0: Dim.DYNAMIC} if tensor.ndim else {}, named or positional) if any_batch else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, positional, kwargs=named, dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False
            )
            assert program is not None
            return program.model_proto.SerializeToString()
    except Exception as error:  # torch.export meets the user's code, the exporter its operators
        hint = "; any_batch=False fixes the number of images, if that is what stands in the way" if any_batch else ""
        raise ScapError(f"export_onnx: the network cannot be exported: {_cause(error)}{hint}") from error


def _cause(error: BaseException) -> str:
    """The first line of the exception that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def open_onnx(file: str | Path | bytes, threads: int | None = None) -> Any:
    """A function of an example that runs an ONNX file, or its bytes, by onnxruntime on the CPU and gives a list of arrays.

    `threads` as torch's by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    source = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def outputs(*arguments: Any, **named: Any) -> list[Any]:
        if named.keys() != set(names):  # nested arguments are told by their order alone
            named = dict(zip(names, (tensor for _, tensor in tensors_of((arguments, named))), strict=True))
        return session.run(None, {name: tensor.numpy() for name, tensor in named.items()})

    return outputs


def _difference(network: nn.Module, data: bytes, example: Example) -> float:
    expected = [tensor for _, tensor in tensors_of(run(network, example))]
    try:
        found = [torch.from_numpy(values) for values in run(open_onnx(data), example)]
    except Exception as error:  # whatever onnxruntime does not know
        raise ScapError(
            f"export_onnx: onnxruntime does not run it on an example {described(example)}: {first_line(error)}"
        ) from error
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        raise ScapError(f"export_onnx: onnxruntime's outputs have other shapes on an example {described(example)}")
    differences = [_checked(*pair) for pair in zip(expected, found, strict=True)]
    return max(differences, default=0.0)


def _checked(expected: Tensor, found: Tensor) -> float:
    difference = relative_difference(expected, found)
    limit = TOLERANCE if expected.dtype in (torch.float32, torch.float64) else COARSE
    if not difference <= limit:
        raise ScapError(
            f"export_onnx: onnxruntime's outputs differ by {difference:.2g} of the largest, more than {limit:g}; nothing was "
            "written. Does the network draw random numbers, or branch on values?"
        )
    return difference
