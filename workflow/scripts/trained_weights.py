"""A network with trained weights: of a checkpoint, of the package that builds it, or of a function of one's own."""

from typing import Any

import torch
from building import build
from dataset import open_dataset
from job import job
from torch import nn

from scap.data.datasets import Dataset
from scap.models.build import build_network, check_logits
from scap.models.checkpoints import load_checkpoint
from scap.pruning.files import save_network


def make_network(data: str, cfg: dict, seed: int, model: str) -> None:
    dataset = open_dataset(data, cfg["architecture"])
    shape = dataset.test.shape
    torch.manual_seed(seed)  # of a fresh head
    network, arguments = with_weights(cfg["architecture"], dataset, cfg["fresh_head"])
    check_logits(network, shape, dataset.classes)
    name = cfg["architecture"]["architecture"]
    save_network(model, network, architecture=name, arguments=arguments, example_shape=(1, *shape))


def with_weights(architecture: dict, dataset: Dataset, fresh_head: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The network and the arguments that build it; the head that its package offers stays unless there is to be a fresh one."""
    weights = architecture["weights"]
    if isinstance(weights, str) and weights != "own":
        arguments = {"in_channels": dataset.test.shape[0]} | ({"classes": dataset.classes} if fresh_head else {})
        return build_network(architecture["architecture"], weights=weights, **arguments), arguments
    network, arguments = build(architecture, dataset)
    if weights != "own":
        kept = weights.get("leave_out") or ()
        load_checkpoint(network, weights["file"], weights["prefix"], weights.get("key"), weights.get("sha256"), kept)
    return network, arguments


if __name__ == "__main__":
    with job(snakemake):
        seed = int(snakemake.wildcards.seed)
        make_network(snakemake.input.data, snakemake.params.cfg, seed, snakemake.output[0])
