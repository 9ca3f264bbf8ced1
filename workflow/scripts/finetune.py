"""Train the pruned network again, from its own weights or, as a control, from scratch; in several processes where asked."""

from pathlib import Path

from dataset import open_dataset
from device import pick_device, trained_on
from job import Report, job
from networks import open_pruned, open_unpruned
from several import start
from table import write_table

from scap.pruning.files import save_network
from scap.reading import read_history
from scap.training.loop import reset_network, train
from scap.training.processes import processes
from scap.training.progress import History
from scap.training.settings import TrainingSettings
from scap.training.shared import train_shared


def finetune(
    pruned: str,
    data: str,
    teacher: list[str],
    earlier: list[str],
    cfg: dict,
    seed: int,
    version: str,
    model: str,
    history: str,
    device: str,
    report: Report,
) -> None:
    """`earlier`: histories of rounds before, whose epochs come first in this one's; each process of several calls it."""
    dataset, settings, own = open_dataset(data, cfg["architecture"]), dict(cfg["training"]), processes()
    network, metadata = open_pruned(pruned, cfg["architecture"])
    if settings.pop("start") == "scratch":
        reset_network(network, seed)
    rows = (train if own.count == 1 else train_shared)(
        network,
        dataset,
        TrainingSettings(**settings),
        seed=seed,
        device=device,
        resume=Path(f"{model}.resume"),  # removed when the whole run has ended well
        version=version,
        teacher=open_unpruned(teacher[0], cfg["architecture"])[0] if teacher else None,
        report=report if own.rank == 0 else None,
    )
    if own.rank == 0:
        write_table(history, after(earlier, rows))
        made = trained_on(device.split(":")[0])
        made |= {"device": f"{own.count} x {made['device']}"} if own.count > 1 else {}
        save_network(model, network, **metadata | {"extra": made})


def after(earlier: list[str], rows: History) -> History:
    """The epochs of all rounds, numbered through."""
    before = [row for path in earlier for row in read_history(path, "seconds").to_dict("records")]
    return [row | {"epoch": number} for number, row in enumerate([*before, *rows], 1)]


if __name__ == "__main__":
    with job(snakemake) as report:
        inputs, cfg = snakemake.input, snakemake.params.cfg
        arguments = {key: str(inputs[key]) for key in ("pruned", "data")}
        arguments |= {key: list(inputs.get(key, [])) for key in ("teacher", "earlier")}
        arguments |= {"cfg": cfg, "seed": int(snakemake.wildcards.seed), "version": snakemake.params.code}
        arguments |= dict(zip(("model", "history"), snakemake.output, strict=True))
        if cfg.get("processes", 1) > 1:
            name = " ".join([snakemake.rule, *map(str, snakemake.wildcards)])
            start(cfg["processes"], arguments, snakemake.log[0], name, snakemake.threads)
        else:
            finetune(**arguments, device=pick_device(snakemake), report=report)
