"""A fine-tuning in several processes of this machine: torchrun starts this file in each, which calls finetune.py."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from job import LOG, QUIET, _reporter

from scap.errors import ScapError
from scap.writing import write_json, write_whole


def start(count: int, arguments: dict[str, Any], log: str, name: str, threads: int) -> None:
    """Run `finetune` with these arguments in `count` processes; ScapError where one of them raises it."""
    with tempfile.TemporaryDirectory(prefix="scap-") as folder:
        task = Path(folder, "task.json")
        write_json(task, {"arguments": arguments, "log": log, "name": name, "threads": max(1, threads // count)})
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the library that this job uses
        done = subprocess.run([*torchrun, __file__, str(task)], env=paths, capture_output=True, text=True, check=False)
        errors = sorted(Path(folder).glob("error-*"))
        if errors:
            raise ScapError(errors[0].read_text())
        if done.returncode:
            raise RuntimeError(f"one of {count} processes failed:\n{done.stderr}")


def run_task(path: str) -> None:
    """What each process does."""
    from finetune import finetune
    from torch import distributed

    task, rank = json.loads(Path(path).read_text()), int(os.environ["LOCAL_RANK"])
    _log_to(task["log"], task["name"], rank)
    try:
        device = own_device(rank, int(os.environ["LOCAL_WORLD_SIZE"]), task["threads"])
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        finetune(**task["arguments"], device=device, report=_reporter(task["arguments"]["cfg"]["training"]["epochs"]))
        distributed.destroy_process_group()
    except ScapError as error:
        write_whole(Path(path).with_name(f"error-{rank}"), str(error))
        sys.exit(1)


def own_device(rank: int, count: int, threads: int) -> str:
    """A GPU for each process; the CPU, of which each has `threads`, where there is none at all."""
    import torch

    found = torch.cuda.device_count()
    torch.set_num_threads(threads)
    if not found:
        return "cpu"
    if found < count:
        raise ScapError(
            f"gpu: {count} GPUs are asked for, but there are {found} here; lower it, or run it where there are more"
        )
    torch.cuda.set_device(rank)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # as in device.py
    return f"cuda:{rank}"


def _log_to(path: str, name: str, rank: int) -> None:
    """The first process adds to the log of the job; what warns in it would warn in all."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if rank == 0:
        handlers = [logging.FileHandler(path)] + ([] if QUIET in os.environ else [logging.StreamHandler(sys.stdout)])
    logging.basicConfig(level=logging.WARNING, format=f"[{name}] %(message)s", handlers=handlers, force=True)
    LOG.setLevel(logging.INFO)


if __name__ == "__main__":
    run_task(sys.argv[1])
