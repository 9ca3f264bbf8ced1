"""Saved progress of a run: its tensors and history in one safetensors file, tied to that run alone."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scap.tensors import save_tensors

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
    """Write the state of the run with fingerprint `identity`, all at once, to `path`."""
    save_tensors(path, tensors, {"fingerprint": identity, "history": json.dumps(history)})


@torch.no_grad()
def load_progress(path: Path, tensors: Mapping[str, Tensor], identity: str) -> History:
    """Fill `tensors` in place from `path` and return the history, if the file is of the run `identity`.

    A missing file gives an empty history, and so does, with a warning in the log, a damaged or foreign one.
    """
    if not Path(path).exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != identity:
                logger.warning("%s: other settings, precision, seed, weights, images, device or code; starting anew", path)
                return []
            saved = {name: file.get_tensor(name) for name in tensors}
    except (OSError, SafetensorError) as error:
        logger.warning("%s: damaged (%s); starting anew", path, error)
        return []
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    return json.loads(metadata["history"])
