"""What the benchmarks share: arguments, the machine, fair timing, peak memory of a child process, tables."""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scap.data.datasets import Dataset, load_dataset, normalise, read_source
from scap.data.sources import missing_files
from scap.models.vgg import vgg16
from scap.pruning.files import load_network
from scap.tensors import save_tensors

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def parse(
    description: str | None, *, images: int = 512, extra: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """The arguments that all benchmarks understand, and those that `extra` adds; sets the number of threads."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that the script works, measures nothing")
    parser.add_argument("--data", default="data", help="folder that holds cifar-10-batches-py (default: data)")
    parser.add_argument("--network", help="a trained full-width VGG16 by scap.save_network (default: freshly initialised)")
    parser.add_argument("--images", type=int, default=images, help=f"calibration images N (default: {images})")
    parser.add_argument("--threads", type=int, help="default: all that torch takes; 1 with --quick")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go (default: benchmarks/results)")
    if extra is not None:
        extra(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads or (1 if options.quick else torch.get_num_threads()))
    if options.quick:
        options.images = min(options.images, 32)
        options.results = options.results / "quick"
    return options


def machine() -> str:
    """The machine in words: processor and its vector instructions, threads used, memory, versions."""
    model = platform.processor() or platform.machine()
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    gigabytes = int(meminfo.read_text().split()[1]) / 2**20 if meminfo.exists() else float("nan")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    processor = f"{model} ({torch.backends.cpu.get_cpu_capability()})"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{processor}, {threads}, {gigabytes:.0f} GiB, {versions}"


def seconds(functions: Mapping[str, Callable[[], Any]], repeats: int, warmups: int = 1) -> dict[str, float]:
    """Median seconds of each function, in interleaved order, so that a drift of the machine meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(warmups + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat >= warmups:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def repeats_for(function: Callable[[], Any], budget: float = 2.0, most: int = 30) -> int:
    """How often a function fits into `budget` seconds, at least 3 times and at most `most`."""
    start = time.perf_counter()
    function()
    return max(3, min(most, int(budget / max(time.perf_counter() - start, 1e-6))))


def peak_memory(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Bytes by which running prepare(*arguments)() raises the peak memory of a child process that has prepared it."""
    return measured_alone(prepare, *arguments)[0]


def measured_alone(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> tuple[int, float]:
    """Of prepare(*arguments)() in a child process that has prepared it: bytes that it adds to the peak memory, CPU seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, torch.get_num_threads(), prepare, arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise MemoryError(f"the child ended without an answer (exit code {child.exitcode}): out of memory?") from error
    finally:
        child.join()


def load_libraries() -> None:
    """Let what torch loads on first use load now (its optimisers take a second and 80 MB), not while we measure."""
    weight = nn.Parameter(torch.ones(64, 64))
    torch.fft.fft2(weight @ weight).abs().sum().backward()
    torch.optim.Adam([weight]).step()


def _measure(sender: Any, threads: int, prepare: Callable[..., Callable[[], Any]], arguments: tuple) -> None:
    torch.set_num_threads(threads)
    load_libraries()
    run = prepare(*arguments)
    before, start = _peak(), time.process_time()
    run()
    sender.send((_peak() - before, time.process_time() - start))


def _peak() -> int:
    """Peak resident bytes: of this program image alone where /proc tells (ru_maxrss can carry over from the parent)."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_dataset(options: argparse.Namespace, holdout: int = 0) -> tuple[Dataset, str]:
    """CIFAR-10 from `--data`, or with --quick scikit-learn's digits in colour where it is missing; and what it is."""
    source = "digits" if options.quick and missing_files("cifar10", options.data) else "cifar10"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.safetensors"
        tensors = read_source(source, Path(options.data))
        for name in ("train_images", "test_images"):
            tensors[name] = tensors[name].expand(-1, 3, -1, -1)  # digits are grey
        save_tensors(path, tensors)
        return load_dataset(path, holdout=holdout), source


def calibration(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Dataset, str]:
    """The network, N normalised calibration images, the data set, and a sentence that says what was used."""
    data, source = read_dataset(options)
    images = normalise(data.train.images[: max(options.images, 128)], data.mean, data.std, "cpu")
    if options.network:
        network, how = load_network(options.network), "trained weights"
    else:
        torch.manual_seed(0)
        network = vgg16(width=0.125 if options.quick else 1)
        _calibrate_batch_norms(network, images[:128])
        how = "fresh weights, batch norms calibrated on 128 images (times depend on weights only through convergence)"
    network.eval()
    width = network.get_submodule("conv5_3").out_channels / 512
    return network, images[: options.images], data, f"VGG16 at width {width:g}, {how}; {options.images} images of {source}"


@torch.no_grad()
def _calibrate_batch_norms(network: nn.Module, images: Tensor) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of this one batch
    network.train()(images)
    for norm in norms:
        norm.momentum = 0.1


def say(message: str) -> None:
    """A line of progress on standard error."""
    print(message, file=sys.stderr, flush=True)


def earlier_rows(name: str, options: argparse.Namespace, note: str) -> list[Row]:
    """The rows of a table that was begun on this machine with the same note; what has its row need not be measured again."""
    import pandas as pd

    path = options.results / f"{name}.csv"
    if options.quick or not path.is_file():
        return []
    table = pd.read_csv(path)
    return table[(table["note"] == note) & (table["machine"] == machine())].drop(columns=["note", "machine"]).to_dict("records")


def is_there(row: Row, rows: Sequence[Row]) -> bool:
    """Whether one of the rows has these values."""
    return any(all(each.get(key) == value for key, value in row.items()) for each in rows)


def write_table(name: str, rows: Sequence[Row], options: argparse.Namespace, note: str = "", show: bool = True) -> None:
    """`name`.csv, tidy, with the note and the machine in the last columns; printed as it stands in the documents (`show`)."""
    import pandas as pd

    from workflow.tables import with_machine

    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{name}.csv"
    pd.DataFrame(list(rows)).assign(note=note, machine=machine()).to_csv(path, index=False, float_format="%.6g")
    if show:
        print(f"\n{name}\n\n{with_machine(pd.read_csv(path))}", flush=True)
