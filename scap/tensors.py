"""Safetensors files that appear complete or not at all: written at once, or batch by batch where memory is short."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from scap.errors import ScapError
from scap.reading import DIGEST, header_bytes
from scap.writing import WholeFile

FLOATS = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
INTEGERS = {torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}
DTYPES = FLOATS | INTEGERS | {torch.bfloat16: "BF16", torch.bool: "BOOL", torch.complex64: "C64"}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` and `metadata` to one safetensors file that appears complete or not at all.

    A SHA-256 of everything is among the metadata: scap.reading.open_tensors notices any damage. Raises ScapError for a
    dtype that cannot be stored and a place that cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # as the format's library does
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in ordered}
    header = Header({name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()}, metadata or {})
    digest = hashlib.sha256(header.data())
    for tensor in stored.values():
        digest.update(_bytes(tensor))
    header.metadata[DIGEST] = digest.hexdigest()
    data = header.data()
    with WholeFile(path, needed=len(data) + header.size) as file:
        file.write(data)
        for tensor in stored.values():
            file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def largest_of(values: Tensor) -> float:
    """The largest absolute value, NaN where there is one; 0 of nothing."""
    return max(-values.amin().item(), values.amax().item()) if values.numel() else 0.0


def too_large(largest: float, dtype: torch.dtype) -> bool:
    """Whether numbers up to `largest` are infinite in `dtype`."""
    return not torch.tensor(largest, dtype=torch.float64, device="cpu").to(dtype).isfinite()


def too_small(largest: float, dtype: torch.dtype) -> bool:
    """Whether `dtype` keeps less than two digits of all numbers up to `largest`: the smaller a number, the fewer it keeps."""
    return 0 < largest < torch.finfo(dtype).tiny / 8


class Header:
    """The beginning of a safetensors file: where each tensor lies, in the order given, and the metadata."""

    def __init__(self, tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> None:
        self.metadata, self.offsets = dict(metadata), dict[str, tuple[int, int]]()
        self.entries: dict[str, object] = {}
        self.size = 0
        for name, (dtype, shape) in tensors.items():
            if dtype not in DTYPES:
                raise ScapError(f"{name}: dtype {dtype} cannot be stored; choose float16, float32 or float64")
            begin, self.size = self.size, self.size + math.prod(shape) * dtype.itemsize
            self.offsets[name] = begin, self.size
            self.entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, self.size]}

    def data(self) -> bytes:
        """The bytes before the first tensor."""
        return header_bytes({"__metadata__": self.metadata, **self.entries} if self.metadata else self.entries)


class TensorFile(WholeFile):
    """A file of known shapes, filled batch by batch: nothing larger than a batch is ever in memory.

    Context manager: `append` fills the named tensors along their first dimension; the file appears when complete.

    Plain writes rather than a memory map: a full disk is then an error that can be told, not a killed process.
    """

    def __init__(
        self,
        path: str | Path,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if dtype not in FLOATS:
            raise ScapError(f"dtype: {dtype} cannot be stored; choose float16, float32 or float64")
        header = Header({name: (dtype, shape) for name, shape in shapes.items()}, metadata or {})
        self.dtype, self.header = dtype, header.data()
        self.position = {name: begin for name, (begin, _) in header.offsets.items()}
        self.ends = {name: end for name, (_, end) in header.offsets.items()}
        self.largest = dict.fromkeys(shapes, 0.0)
        super().__init__(path, needed=len(self.header) + header.size)

    def __enter__(self) -> "TensorFile":
        super().__enter__()
        try:
            self.write(self.header, 0)
        except ScapError as error:  # the block has not begun: it will not be left
            super().__exit__(type(error), error, None)
            raise
        return self

    def append(self, name: str, values: Tensor) -> None:
        """Write the next entries of tensor `name`; ScapError where they are not finite in this dtype or the disk is full."""
        stored, largest = values.detach().to(self.dtype), largest_of(values.detach())
        if not math.isfinite(largest):
            raise ScapError(f"{self.path}: the {name} hold NaN or infinity; the network has diverged, train it again")
        if too_large(largest, self.dtype):
            raise ScapError(f"{self.path}: the {name} reach {largest:.3g}, more than {self._remedy()}")
        self.largest[name] = max(self.largest[name], largest)
        data = _bytes(stored.cpu().contiguous())
        if self.position[name] + len(data) > self.ends[name]:
            raise ScapError(f"{self.path}: more entries of {name} were written than announced")
        self.write(data, len(self.header) + self.position[name])
        self.position[name] += len(data)

    def _remedy(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} holds; " + ("use `dtype: float32`" if self.dtype == torch.float16 else "scale the images")

    def _problem(self) -> str | None:
        """What is wrong with the file as a whole."""
        if self.position != self.ends:
            return f"{self.path}: fewer entries were written than announced"
        for name, largest in self.largest.items():
            if too_small(largest, self.dtype):
                return f"{self.path}: the {name} reach only {largest:.3g}, less than {self._remedy()}"
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        problem = self._problem() if kind is None else None
        super().__exit__(ScapError if problem else kind, error, at)
        if problem:
            raise ScapError(problem)
