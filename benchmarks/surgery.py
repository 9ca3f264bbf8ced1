"""What surgery can do with networks that others wrote: layers, reasons, law 8, times, files, training.

For each network: convolutions that can be pruned, the most frequent reasons why others cannot, law 8's largest relative
difference when half of the channels of all of them are removed, seconds to list and to cut beside those of one forward and
backward pass, whether the pruned network is loaded from its file with equal outputs, and whether a training step runs.
Each network runs in a process of its own with a limit of processor time.
"""

import argparse
import multiprocessing
import re
import resource
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Row, parse, say, write_table
from benchmarks.networks import example_for, made, names, with_nms
from scap.errors import ScapError
from scap.models.inputs import tensors_of
from scap.pruning.copies import undisturbed
from scap.pruning.counting import count_operations
from scap.pruning.cutting.trials import Surgery
from scap.pruning.files import load_network, save_network
from scap.pruning.surgery import cut_network, explain

LIMIT = 600  # seconds of processor time a network
COLUMNS = ("source", "network", "image", "convolutions", "prunable", "reasons", "law 8", "pass s", "list / pass", "cut / pass",
           "MACs left %", "loads equal", "training step", "remark")  # fmt: skip


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds (other work may run beside), and what came out."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def one_pass(network: nn.Module, example: Tensor) -> None:
    """Forward and backward of all that can be differentiated."""
    values = [tensor.sum() for _, tensor in tensors_of(network(example)) if tensor.requires_grad]
    if values:
        torch.stack(values).sum().backward()
    network.zero_grad(set_to_none=True)


def reasons(table: Any) -> str:
    """The three most frequent reasons, names of modules left out."""
    general = [re.sub(r" \(groups=\d+\)| and '[^']*'", "", reason) for reason in table.reason[~table.prunable]]
    general = [
        re.sub(r" in (the network's own forward|'[^']*')", " in", re.sub(r"with '[^']*'", "with another", r)) for r in general
    ]
    general = [re.sub(r"convolution '[^']*'", "convolution", reason) for reason in general]
    return "; ".join(f"{count} x {reason}" for reason, count in Counter(general).most_common(3))


def measured(source: str, name: str, size: int) -> Row:
    """One row of the table."""
    with_nms()
    explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8))  # what PyTorch imports at first use
    network, example = made(source, name).eval(), example_for(name, size)
    one_pass(network, example)
    seconds = statistics.median(timed(lambda: one_pass(network, example))[0] for _ in range(5))
    listing, table = timed(lambda: explain(network, example))
    row: Row = {
        "source": source,
        "network": name,
        "image": size,
        "convolutions": len(table),
        "prunable": int(table.prunable.sum()),
    }
    row |= {"reasons": reasons(table), "pass s": seconds, "list / pass": listing / seconds}
    plan = {layer: halved(network.get_submodule(layer).out_channels) for layer in table.layer[table.prunable]}
    if plan:
        with undisturbed(network):
            row["law 8"] = Surgery(network, example).check(plan).difference
        cutting, pruned = timed(lambda: cut_network(network, plan, example))
        row |= {"cut / pass": cutting / seconds, "MACs left %": 100 * left(network, pruned, example)}
        row |= {"loads equal": loads_equal(source, name, pruned, example), "training step": trains(network, pruned, example)}
    return row


def halved(channels: int) -> list[int]:
    """Half of the channels, chosen at random."""
    return sorted(np.random.default_rng(0).choice(channels, -(-channels // 2), replace=False).tolist())


def left(network: nn.Module, pruned: nn.Module, example: Tensor) -> float:
    """Share of the MACs."""
    return count_operations(pruned, example)["macs"] / count_operations(network, example)["macs"]


def outputs(network: nn.Module, example: Tensor) -> list[Tensor]:
    """All tensors that a network returns."""
    with torch.no_grad():
        return [tensor for _, tensor in tensors_of(network.eval()(example))]


def loads_equal(source: str, name: str, pruned: nn.Module, example: Tensor) -> str:
    """Whether a file brings back the same network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.safetensors"
        save_network(path, pruned)
        loaded = load_network(path, build=lambda: made(source, name), example=example)
    pairs = zip(outputs(loaded, example), outputs(pruned, example), strict=True)
    return "yes" if all(torch.equal(a, b) for a, b in pairs) else "no"


def trains(network: nn.Module, pruned: nn.Module, example: Tensor) -> str:
    """Whether a step in training mode runs, where it does with the original."""
    batch = torch.cat([example, example])
    try:
        one_pass(network.train(), batch)
    except Exception as error:  # detection networks want targets
        return f"original does not: {str(error).splitlines()[0][:40]}"
    one_pass(pruned.train(), batch)
    return "yes"


def work(sender: Any, source: str, name: str, size: int) -> None:
    """In a process of its own."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    try:
        sender.send(measured(source, name, size))
    except ScapError as error:
        sender.send({"source": source, "network": name, "image": size, "remark": f"ScapError: {error}"})
    except Exception as error:  # the point of the table: none is expected
        sender.send({"source": source, "network": name, "image": size, "remark": f"{type(error).__name__}: {error}"})


def row_of(source: str, name: str, size: int) -> Row:
    """A row, or what kept it from being made."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(sender, source, name, size))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        late = child.exitcode == -signal.SIGXCPU
        remark = f"no end within {LIMIT} s of processor time" if late else f"the process died ({child.exitcode})"
        return {"source": source, "network": name, "image": size, "remark": remark}
    finally:
        child.join()


def main(options: argparse.Namespace) -> None:
    """Make the table, network by network; it is written again after each."""
    rows = []
    note = "half of the channels of all prunable layers removed; a pass is forward and backward of one image, processor time"
    for source, name, size in names(options.quick):
        rows.append(row_of(source, name, size))
        say(str(rows[-1]))
        write_table("surgery", [{column: row.get(column, "") for column in COLUMNS} for row in rows], options, note)


if __name__ == "__main__":
    main(parse(__doc__))
