"""Safetensors files that appear complete or not at all: written at once, or batch by batch where memory is short."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import save_file
from torch import Tensor

from scap.errors import ScapError

DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


def _temporary(path: Path) -> Path:
    """The hidden name of a file that is being written: `.dvcignore` and workflow/cluster.py know the suffix."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to one safetensors file that appears complete or not at all."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class TensorFile:
    """A file of known shapes, filled batch by batch: nothing larger than a batch is ever in memory.

    Context manager: `append` fills the named tensors along their first dimension; the file appears when complete.

    It is written under a temporary name. Plain writes rather than a memory map: a full disk is then an error that can be
    told, not a killed process.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        dtype: torch.dtype,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ScapError(f"dtype: {dtype} cannot be stored; choose float16, float32 or float64")
        self.path, self.dtype = path, dtype
        self.temporary = _temporary(path)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        begin = 0
        self.position, self.ends = {}, {}
        for name, shape in shapes.items():
            end = begin + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self.position[name], self.ends[name] = begin, end
            begin = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data to start at a multiple of 8
        self.header = len(text).to_bytes(8, "little") + text

    def __enter__(self) -> "TensorFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.temporary, "wb", buffering=0)
        self._write(0, self.header)
        return self

    def append(self, name: str, values: Tensor) -> None:
        """Write the next entries of tensor `name`; ScapError where they are not finite in this dtype or the disk is full."""
        stored = values.detach().to(self.dtype)
        if not stored.isfinite().all():
            raise ScapError(self._not_finite(name, values))
        data = stored.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        self._write(len(self.header) + self.position[name], data)
        self.position[name] += len(data)

    def _write(self, position: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            self.file.seek(position)
            while view:  # an unbuffered write may take a part only
                view = view[self.file.write(view) :]
        except OSError as error:
            size = max(self.ends.values()) / 1e9
            raise ScapError(f"{self.path}: cannot be written ({error.strerror}); it needs {size:.2f} GB there") from error

    def _not_finite(self, name: str, values: Tensor) -> str:
        if not values.isfinite().all():
            return f"{self.path}: the {name} hold NaN or infinity; the network has diverged, train it again"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.path}: the {name} reach {values.abs().max():.3g}, more than {dtype} holds; use `dtype: float32`"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()
        complete = self.position == self.ends
        if kind is None and complete:
            os.replace(self.temporary, self.path)
            return
        self.temporary.unlink(missing_ok=True)
        if kind is None:
            raise ScapError(f"{self.path}: fewer entries were written than announced")
