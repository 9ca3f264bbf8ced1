"""Train the pruned network again, from its own weights or, as a control, from scratch."""

from pathlib import Path

from dataset import open_dataset
from device import pick_device, trained_on
from job import Report, job
from networks import open_pruned, open_unpruned
from table import write_table

from scap.pruning.files import save_network
from scap.training.loop import reset_network, train
from scap.training.settings import TrainingSettings


def finetune(
    pruned: str,
    data: str,
    teacher: list[str],
    cfg: dict,
    seed: int,
    version: str,
    model: str,
    history: str,
    device: str,
    report: Report,
) -> None:
    dataset, settings = open_dataset(data, cfg["architecture"]), dict(cfg["training"])
    network, metadata = open_pruned(pruned, cfg["architecture"])
    if settings.pop("start") == "scratch":
        reset_network(network, seed)
    resume = Path(f"{model}.resume")  # removed when the whole run has ended well
    rows = train(
        network,
        dataset,
        TrainingSettings(**settings),
        seed=seed,
        device=device,
        resume=resume,
        version=version,
        teacher=open_unpruned(teacher[0], cfg["architecture"])[0] if teacher else None,
        report=report,
    )
    write_table(history, rows)
    save_network(model, network, **metadata | {"extra": trained_on(device)})


if __name__ == "__main__":
    with job(snakemake) as report:
        finetune(
            snakemake.input.pruned,
            snakemake.input.data,
            list(snakemake.input.teacher),
            snakemake.params.cfg,
            int(snakemake.wildcards.seed),
            snakemake.params.code,
            *snakemake.output,
            pick_device(snakemake),
            report,
        )
