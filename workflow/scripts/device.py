"""The device that a job uses, and what of it is kept with a trained network."""

import platform
from typing import Any

import torch


def pick_device(snakemake: Any) -> str:
    """ "cuda" where the job asks for a GPU and there is one, else the CPU with the job's threads."""
    torch.set_num_threads(snakemake.threads)
    if not snakemake.resources.get("gpu", 0) or not torch.cuda.is_available():
        return "cpu"
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as on the CPU
    return "cuda"


def trained_on(device: str) -> dict[str, str]:
    """For tables: PyTorch, and the GPU, or the processor with its widest vector instructions."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        processor = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        name = f"{processor} ({torch.backends.cpu.get_cpu_capability()})"
    return {"device": name, "torch": torch.__version__}
