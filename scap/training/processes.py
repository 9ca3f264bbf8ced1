"""One training over several processes (torchrun): who has which part of a batch, and what they tell one another.

Equal to one process with the whole batch up to rounding: the parts of a batch are equally large, gradients are means over
them (DistributedDataParallel), and batch norms take mean and variance over all parts. torch's SyncBatchNorm does the latter
on GPUs alone; here it is done by differentiable sums over processes, on any device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scap.errors import ScapError


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and the number of this one."""

    count: int = 1
    rank: int = 0


def processes() -> Processes:
    """Those of torch.distributed, where it is initialised."""
    if not dist.is_available() or not dist.is_initialized():
        return Processes()
    return Processes(dist.get_world_size(), dist.get_rank())


class Shares:
    """Batch sampler: random batches of `batch_size` of `count` examples, of each this process's part.

    The order depends on seed and epoch alone, so that any number of processes go through the same batches. An incomplete
    last batch is left out, and what does not divide by the processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.own, self.seed, self.epoch = processes(), seed, 0
        if batch_size % self.own.count:
            raise ScapError(f"batch_size: {batch_size} does not divide by {self.own.count} processes; give a multiple")
        if count < self.own.count:
            raise ScapError(f"data: {count} examples are fewer than {self.own.count} processes; give more")
        self.count, self.size = count, min(batch_size, count // self.own.count * self.own.count)

    def set_epoch(self, epoch: int) -> None:
        """Another order for another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        for start in range(0, len(self) * self.size, self.size):
            yield order[start : start + self.size][self.own.rank :: self.own.count].tolist()


def equal_everywhere(value: int, problem: str) -> None:
    """ScapError with this problem where `value` is another one in another process."""
    if processes().count > 1:
        values: list[int] = [0] * processes().count
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise ScapError(f"{problem} ({', '.join(map(str, values))})")


def mean_over_processes(value: Tensor) -> float:
    """The mean of a number over all processes."""
    if processes().count > 1:
        dist.all_reduce(value)
    return float(value) / processes().count


@contextmanager
def parallel(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """`network` around which gradients and batch norms are shared with the other processes; itself where it is alone."""
    if processes().count == 1:
        yield network
        return
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalised, norm)  # type: ignore[method-assign]
    try:
        yield nn.parallel.DistributedDataParallel(
            network, device_ids=None if device.type == "cpu" else [device], broadcast_buffers=False
        )
    finally:
        for norm in norms:
            del norm.forward


def _normalised(norm: _BatchNorm, inputs: Tensor) -> Tensor:
    """What `norm` gives for this process's part of a batch: mean and variance of the whole, which running ones follow."""
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, inputs)
    dims = [dim for dim in range(inputs.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(inputs.ndim)]
    count = inputs.numel() // inputs.shape[1] * processes().count
    values = inputs.float()
    mean = _total(values.sum(dims)) / count
    centred = values - mean.view(shape)
    variance = _total(centred.square().sum(dims)) / count
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        _follow(norm, mean.detach(), variance.detach() * count / max(1, count - 1))
    scale = (variance + norm.eps).rsqrt() * (norm.weight if norm.affine else 1)
    shift = norm.bias.view(shape) if norm.affine else 0
    return (centred * scale.view(shape) + shift).to(inputs.dtype)


def _total(part: Tensor) -> Tensor:
    """The sum over processes; gradients go back to all of them."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(part)


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch's batch norm does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if share is None else share
    norm.running_mean.lerp_(mean.to(norm.running_mean), share or 0.0)
    norm.running_var.lerp_(variance.to(norm.running_var), share or 0.0)
