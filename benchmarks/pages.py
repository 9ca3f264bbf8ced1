"""What the memory of a training on the CPU costs: steps of VGG16 under glibc's own ways and under those of the workflow's jobs.

By default glibc gives each large tensor fresh pages of 4 KiB and gives them back, so that the system clears them again at every
step. The workflow's jobs ask for huge pages and keep what they have freed (workflow/memory.py). Each row is a child process of
its own, in turns; its losses show that nothing else differs. A width that is there is not measured again.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch.nn.functional import cross_entropy

from benchmarks.common import Row, earlier_rows, is_there, parse, say, write_table
from scap.models.vgg import vgg16
from workflow.memory import HUGE_PAGES, KEEP, TUNABLES

WAYS = {"default": "", "huge pages": HUGE_PAGES, "kept huge pages": f"{HUGE_PAGES}:{KEEP}"}
BATCH = 256
NOTE = f"VGG16, one step of {BATCH} images of 32x32; losses equal bit for bit"


def step_times(width: float, steps: int, batch: int) -> Row:
    """Medians over the steps, after one that warms up: wall, user and system seconds; the last loss and the peak memory."""
    torch.manual_seed(0)
    network, images, labels = vgg16(width=width), torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    times = []
    for _ in range(1 + steps):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        optimiser.zero_grad()
        loss = cross_entropy(network(images), labels)
        loss.backward()
        optimiser.step()
        after = resource.getrusage(resource.RUSAGE_SELF)
        times.append((time.perf_counter() - start, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
    wall, user, system = (statistics.median(column) for column in zip(*times[1:], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # KiB on Linux, where glibc is
    return {"s a step": wall, "user s": user, "system s": system, "peak MB": peak, "loss": loss.item()}


def in_a_child(way: str, options: argparse.Namespace, width: float) -> Row:
    """The times of a process that starts under a way of glibc."""
    sizes = [f"--step={width}", f"--steps={options.steps}", f"--threads={torch.get_num_threads()}"]
    command = [sys.executable, "-m", "benchmarks.pages", *sizes, *(["--quick"] if options.quick else [])]
    told = subprocess.run(command, env=dict(os.environ) | {TUNABLES: WAYS[way]}, capture_output=True, text=True, check=True)
    return json.loads(told.stdout)


def main(options: argparse.Namespace) -> None:
    """Each width under each way, in turns; the row of a way is the median of its rounds."""
    if options.step:
        print(json.dumps(step_times(options.step, options.steps, 8 if options.quick else BATCH)))
        return
    rows = earlier_rows("pages", options, NOTE)
    for width in (0.125,) if options.quick else (0.25, 0.5, 1):
        if is_there({"width": width}, rows):
            continue
        taken: dict[str, list[Row]] = {way: [] for way in WAYS}
        for round_ in range(1 if options.quick else options.rounds):
            for way in WAYS:
                say(f"width {width:g}, round {round_ + 1}, {way}")
                taken[way].append(in_a_child(way, options, width))
        if len({row["loss"] for found in taken.values() for row in found}) != 1:
            raise SystemExit(f"width {width:g}: the losses differ: {taken}")
        first = statistics.median(row["s a step"] for row in taken["default"])
        for way, found in taken.items():
            row: Row = {"width": width, "memory": way}
            row |= {name: statistics.median(each[name] for each in found) for name in found[0] if name != "loss"}
            rows.append(row | {"of default": row["s a step"] / first})
        write_table("pages", rows, options, NOTE, show=False)
    write_table("pages", rows, options, NOTE)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=float, help="only the steps of this width, in this process")
    parser.add_argument("--steps", type=int, default=3, help="steps measured in a process (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (default: 3)")


if __name__ == "__main__":
    main(parse(__doc__, extra=_more))
