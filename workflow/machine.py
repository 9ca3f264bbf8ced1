"""What the machine has that a run of the workflow is planned by. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

GPUS = ("/dev/nvidia0", "/dev/kfd")  # what the drivers of NVIDIA and AMD make for the first one


def has_gpu(devices: Sequence[str] = GPUS) -> bool:
    """Whether this machine has a GPU that PyTorch could use."""
    return any(Path(device).exists() for device in devices)
