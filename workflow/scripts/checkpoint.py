"""Load a checkpoint that someone else trained as the network to be pruned."""

from building import build
from dataset import open_dataset
from job import job

from scap.models.build import check_logits
from scap.models.checkpoints import load_checkpoint
from scap.pruning.files import save_network


def import_checkpoint(checkpoint: str, data: str, cfg: dict, model: str) -> None:
    dataset = open_dataset(data, cfg["architecture"])
    shape = dataset.test.shape
    network, arguments = build(cfg["architecture"], dataset)
    weights = cfg["architecture"]["weights"]
    load_checkpoint(network, checkpoint, weights["prefix"], weights.get("key"), weights.get("sha256"))
    check_logits(network, shape, dataset.classes)
    name = cfg["architecture"]["architecture"]
    save_network(model, network, architecture=name, arguments=arguments, example_shape=(1, *shape))


if __name__ == "__main__":
    with job(snakemake):
        import_checkpoint(snakemake.input.checkpoint, snakemake.input.data, snakemake.params.cfg, snakemake.output[0])
