"""The device that this machine offers, and what a job needs to use it."""

import torch


def pick_device(threads: int) -> str:
    """ "cuda" where there is one, else the CPU with the job's threads."""
    torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"
