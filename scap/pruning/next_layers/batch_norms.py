"""Running statistics of batch norms, estimated again for a network whose activations have changed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scap.models.inputs import device_and_precision, fitted
from scap.pruning.next_layers.moments import run_on_images


@torch.no_grad()
def estimate_batch_norms(network: nn.Module, pruned: nn.Module, images: Tensor, batch_size: int) -> list[str]:
    """Estimate the statistics of those batch norms of `pruned` that read something else than in `network`, in place.

    Means and variances of a batch normalise it, and their averages over the batches are kept. Both networks are in
    evaluation mode, before and after. Returns the module paths of the batch norms.
    """
    changed: dict[str, Any] = {name: pruned.get_submodule(name) for name in _changed(network, pruned, images[:2])}
    for norm in changed.values():
        norm.train()
    names = [name for name, norm in changed.items() if norm.training]  # without those that are frozen
    norms = [changed[name] for name in names]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    if norms:
        own = device_and_precision(pruned)
        for batch in images.tensor_split(max(1, len(images) // batch_size)):  # none of one image
            run_on_images(pruned, fitted(batch, *own))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return names


def _changed(network: nn.Module, pruned: nn.Module, images: Tensor) -> list[str]:
    old, new = _inputs(network, images), _inputs(pruned, images)
    return [name for name, reads in new.items() if not _same(reads, old.get(name, []))]


def _same(new: list[Tensor], old: list[Tensor]) -> bool:
    return len(new) == len(old) and all(map(torch.equal, new, old))


def _inputs(network: nn.Module, images: Tensor) -> dict[str, list[Tensor]]:
    """What each batch norm reads, call by call."""
    inputs: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            inputs.setdefault(name, []).append((args[0] if args else kwargs["input"]).clone())

        return hook

    norms = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    tracking = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    handles = [norm.register_forward_pre_hook(keep(name), with_kwargs=True) for name, norm in tracking.items()]
    run_on_images(network, fitted(images, *device_and_precision(network)))
    for handle in handles:
        handle.remove()
    return inputs
