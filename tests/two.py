"""Two processes of torch.distributed on this CPU, for tests."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scap.errors import ScapError


def _child(rank: int, folder: Path, function: Callable[[], Any], results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        results.put((rank, function()))
    except ScapError as error:
        results.put((rank, str(error)))
    except Exception:
        results.put((rank, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


def in_two(function: Callable[[], Any], folder: Path) -> list[Any]:
    """What `function` gives in each of two processes; forked, so that they need not import PyTorch again."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=_child, args=(rank, folder, function, results)) for rank in range(2)]
    for child in children:
        child.start()
    found = dict(results.get() for _ in children)
    for child in children:
        child.join()
    return [found[0], found[1]]
