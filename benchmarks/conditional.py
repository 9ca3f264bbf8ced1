"""What ranking by conditional fidelity and compensation cost, and how that grows with the channels.

Growth: a convolution of K channels read by a 3x3 convolution of K channels on 4x4 maps, from images to scores, and the
compensation of half its channels. Whole networks: VGG16 and ResNet-56, every layer, beside one epoch of their training in
the same run. `--only` measures some of the three.
Times are CPU seconds of the process, so that other work on the machine counts as little as it can.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Row, calibration, earlier_rows, is_there, parse, peak_memory, say, write_table
from scap.criterion.conditional import conditional_scores
from scap.criterion.forms import FORMS
from scap.models.build import build_network
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.surgery import prunable_layers

EPOCH_IMAGES, BATCH, STEPS = 50_000, 128, 4
LIMITS = {"channelwise": 2048, "spectral": 512, "taps": 512, "full": 1024}  # channels beyond which a task takes minutes
NOTE = "one pair of layers on 4x4 maps; exponent: of the CPU seconds over K, from the size before"
PARTS = ("vgg16", "resnet56", "growth")
SHARE = {"half width": 0.5, "0.38 of the width": 0.38}


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU seconds that one call takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


def pair(channels: int) -> nn.Module:
    """A producer of `channels` and its consumer."""
    torch.manual_seed(0)
    consumer = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(nn.Conv2d(16, channels, 3, padding=1), nn.ReLU(), consumer, nn.BatchNorm2d(channels)).eval()


def prepare(task: str, channels: int, images: int) -> Callable[[], Any]:
    """Ranking by a form, or `full` compensation of half the channels, ready to run."""
    network, data = pair(channels), torch.randn(images, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    if task == "full":
        return lambda: prune_and_compensate(network, {"0": list(range(channels // 2))}, data)
    return lambda: conditional_scores(network, data, ["0"], form=task)


def growth(sizes: list[int], options: argparse.Namespace) -> None:
    """CPU seconds and peak memory of each task over K; a row is written when it is measured, and not measured again."""
    rows, images = earlier_rows("conditional_growth", options, NOTE), options.images
    for task in ("channelwise", "full", "taps", "spectral"):
        prepare(task, 8, 16)()  # what torch loads on first use
        before: Row | None = None
        for channels in (size for size in sizes if size <= LIMITS[task]):
            same: Row = {"task": task, "K": channels, "N": images}
            if known := [row for row in rows if is_there(same, [row])]:
                before = known[0]
                continue
            say(f"{task}: K = {channels}")
            seconds = cpu_seconds(prepare(task, channels, images))
            peak = peak_memory(prepare, task, channels, images)
            row: Row = same | {"CPU s": seconds, "peak MB": peak / 1e6}
            rows.append(row | {"exponent": slope(before, row)})
            before = row
            write_table("conditional_growth", rows, options, NOTE)


def slope(before: Row | None, row: Row) -> float:
    """Exponent of the CPU seconds over K, from one size to the next."""
    if before is None:
        return float("nan")
    return math.log(row["CPU s"] / before["CPU s"]) / math.log(row["K"] / before["K"])


def epoch_seconds(network: nn.Module, images: Tensor) -> float:
    """CPU seconds of one training epoch, from a few steps of forward, backward and update."""
    trained = copy.deepcopy(network).train()
    optimiser = torch.optim.SGD(trained.parameters(), lr=1e-6, momentum=0.9, nesterov=True)
    batch, labels = images[:BATCH], torch.zeros(len(images[:BATCH]), dtype=torch.long)

    def step() -> None:
        optimiser.zero_grad()
        functional.cross_entropy(trained(batch), labels).backward()
        optimiser.step()

    step()
    return cpu_seconds(lambda: [step() for _ in range(STEPS)]) / STEPS * EPOCH_IMAGES / len(batch)


def whole_network(network: nn.Module, images: Tensor) -> list[Row]:
    """CPU seconds of the rankings and of compensation at two widths, as shares of one training epoch."""
    layers = prunable_layers(network, images[:1])
    say("one training epoch")
    epochs = [epoch_seconds(network, images)]
    rows: list[Row] = []
    for form in FORMS:
        say(f"ranking: {form}")
        seconds = cpu_seconds(lambda form=form: conditional_scores(network, images, layers, form=form))  # type: ignore[misc]
        rows.append({"step": f"ranking, {form}", "CPU s": seconds})
    for name, share in SHARE.items():
        widths = {layer: max(1, round(share * network.get_submodule(layer).out_channels)) for layer in layers}  # type: ignore
        plan = {layer: list(range(width)) for layer, width in widths.items()}
        for how in ("batch-norm", "channelwise", "full"):
            say(f"compensation: {how}, {name}")
            seconds = cpu_seconds(lambda how=how, plan=plan: prune_and_compensate(network, plan, images, how))  # type: ignore
            rows.append({"step": f"compensation, {how}, {name}", "CPU s": seconds})
    epochs.append(epoch_seconds(network, images))
    epoch = sum(epochs) / 2
    rows = [{"step": "one training epoch", "CPU s": epoch}, *rows]
    return [row | {"% of an epoch": 100 * row["CPU s"] / epoch} for row in rows]


def some(parser: argparse.ArgumentParser) -> None:
    """The argument of this benchmark alone."""
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="default: all")


def main(options: argparse.Namespace) -> None:
    """All tables, each as soon as it is measured."""
    network, images, _, sentence = calibration(options)
    if "vgg16" in options.only:
        write_table("conditional_network", whole_network(network, images), options, sentence)
    if "resnet56" in options.only:
        torch.manual_seed(0)
        network = build_network("resnet20" if options.quick else "resnet56").eval()
        note = f"ResNet-56, inner convolutions of its blocks, random weights; {len(images)} images"
        write_table("conditional_resnet56", whole_network(network, images), options, note)
    if "growth" not in options.only:
        return
    sizes = [8, 16] if options.quick else [64, 128, 256, 512, 1024, 2048]
    growth(sizes, options)


if __name__ == "__main__":
    main(parse(__doc__, extra=some))
