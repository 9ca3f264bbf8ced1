"""Spectral Complex Autoencoder Pruning: finds redundant output channels of convolutional networks.

    table = scap.score_network(network, images)  # calibration images, normalised as in training
    plan = scap.plan_at(table, threshold=0.6)  # channels kept per layer
    smaller = scap.prune_network(network, plan, images[:1])
    scap.save_network("smaller.safetensors", smaller, plan=plan, example_shape=images[:1].shape)

docs/method.md says what each step computes.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AutoencoderSettings": "criterion.settings",
    "CriterionSettings": "criterion.settings",
    "ScapError": "errors",
    "count_operations": "pruning.counting",
    "layer_macs": "pruning.counting",
    "load_network": "pruning.files",
    "plan_at": "pruning.plans",
    "plan_of_widths": "pruning.plans",
    "prunable_layers": "pruning.surgery",
    "prune_network": "pruning.surgery",
    "save_network": "pruning.files",
    "score_network": "criterion.score",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    # Imported on first use: `import scap` costs nothing, which the many short jobs of the workflow live on.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'scap' has no attribute {name!r}")
    return getattr(import_module(f"scap.{_PUBLIC[name]}"), name)
