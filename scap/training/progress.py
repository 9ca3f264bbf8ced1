"""Saved progress of a run: its tensors and history in one safetensors file, tied to that run alone."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scap.errors import DamagedFile
from scap.reading import open_tensors
from scap.tensors import DTYPES, save_tensors

logger = logging.getLogger(__name__)
History = list[dict[str, float]]


def fingerprint(facts: object, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of `facts` (anything JSON can hold) and of the tensors' names, shapes and values."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_progress(path: Path, tensors: Mapping[str, Tensor], history: History, identity: str) -> None:
    """Write the state of the run with fingerprint `identity`, all at once and with a checksum of it all, to `path`."""
    save_tensors(path, tensors, {"fingerprint": identity, "history": json.dumps(history)})


@torch.no_grad()
def load_progress(path: Path, tensors: Mapping[str, Tensor], identity: str) -> History:
    """Fill `tensors` in place from `path` and return the history, if the file is of the run `identity`.

    A missing file gives an empty history, and so does, with a warning in the log, a foreign one, and one in which anything
    differs from what save_progress wrote; `tensors` are untouched then.
    """
    if not Path(path).exists():
        return []
    try:
        with open_tensors(path, digest=True) as file:
            if file.metadata.get("fingerprint") != identity:
                problem = "other settings, precision, seed, weights, images, device or code"
                logger.warning("%s: %s; training from scratch", path, problem)
                return []
            saved = {name: file.take(name, tuple(of.shape), (DTYPES[of.dtype],)) for name, of in tensors.items()}
            history = json.loads(file.metadata["history"])
            if not isinstance(history, list):
                raise ValueError("its history is no list")
    except (DamagedFile, KeyError, ValueError) as error:
        logger.warning("%s: %s; training from scratch", path, getattr(error, "problem", f"damaged ({error!r})"))
        return []
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    return history
