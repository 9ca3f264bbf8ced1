"""The device that this machine offers, and what a job needs to use it."""

import platform

import torch


def pick_device(threads: int) -> str:
    """ "cuda" where there is one, else the CPU with the job's threads."""
    torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """What computed a result, for tables: the graphics processor, or the processor and its widest vector instructions."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
