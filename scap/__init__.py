"""Spectral Complex Autoencoder Pruning: finds redundant output channels of convolutional networks.

    table = scap.score_network(network, images, criterion="conditional")  # one row a channel
    plan = scap.plan_for(table, network, images[:1], macs=0.5)  # half of the FLOPs: what stays
    smaller = scap.prune_network(network, plan, images, compensate="full")
    scap.save_network("smaller.safetensors", smaller, plan=plan, example_shape=images[:1].shape)

docs/method.md says what each step computes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_PUBLIC = {
    "AutoencoderSettings": "criterion.settings",
    "CriterionSettings": "criterion.settings",
    "Latency": "pruning.latency",
    "ScapError": "errors",
    "TrainingSettings": "training.settings",
    "count_operations": "pruning.counting",
    "explain": "pruning.surgery",
    "export_onnx": "pruning.export",
    "finetune": "training.finetuning",
    "layer_macs": "pruning.counting",
    "load_network": "pruning.files",
    "measure_latency": "pruning.latency",
    "plan_at": "pruning.plans",
    "plan_for": "pruning.widths",
    "plan_of_widths": "pruning.plans",
    "prunable_layers": "pruning.surgery",
    "prune_in_rounds": "criterion.rounds",
    "prune_network": "pruning.prune",
    "save_network": "pruning.files",
    "score_network": "criterion.score",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from scap.criterion.rounds import prune_in_rounds as prune_in_rounds
    from scap.criterion.score import score_network as score_network
    from scap.criterion.settings import AutoencoderSettings as AutoencoderSettings
    from scap.criterion.settings import CriterionSettings as CriterionSettings
    from scap.errors import ScapError as ScapError
    from scap.pruning.counting import count_operations as count_operations
    from scap.pruning.counting import layer_macs as layer_macs
    from scap.pruning.export import export_onnx as export_onnx
    from scap.pruning.files import load_network as load_network
    from scap.pruning.files import save_network as save_network
    from scap.pruning.latency import Latency as Latency
    from scap.pruning.latency import measure_latency as measure_latency
    from scap.pruning.plans import plan_at as plan_at
    from scap.pruning.plans import plan_of_widths as plan_of_widths
    from scap.pruning.prune import prune_network as prune_network
    from scap.pruning.surgery import explain as explain
    from scap.pruning.surgery import prunable_layers as prunable_layers
    from scap.pruning.widths import plan_for as plan_for
    from scap.training.finetuning import finetune as finetune
    from scap.training.settings import TrainingSettings as TrainingSettings
else:

    def __getattr__(name: str) -> object:
        # Imported on first use: `import scap` costs nothing, which the many short jobs of the workflow live on.
        if name == "__version__":
            from importlib.metadata import version

            return version("scap")
        if name not in _PUBLIC:
            raise AttributeError(f"module 'scap' has no attribute {name!r}")
        return getattr(import_module(f"scap.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
