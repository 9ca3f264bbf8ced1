"""What is made of what: paths, and the files that a run, a table, a figure or a target needs.

A path names what made the file. Logs and benchmarks of a job stand under logs/ at the same path.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from itertools import product
from typing import Any

from scap.criterion.settings import AutoencoderSettings, CalibrationSettings
from scap.criterion.terms import needs
from scap.models.names import PRUNABLE
from workflow.figures import FIGURES, TABLES
from workflow.references import sees_spectra

NETWORK = "results/{network}/seed{seed}"
CALIBRATION = f"{NETWORK}/calibrations/{{calibration}}"
AUTOENCODER = f"{CALIBRATION}/autoencoders/{{autoencoder}}"
CRITERION = f"{NETWORK}/{{criterion}}"
PRUNED = f"{CRITERION}/widths-{{widths}}/{{size}}/compensation-{{compensation}}"
RUN = f"{PRUNED}/{{schedule}}"
ROUND = f"{RUN}/rounds/{{round}}"

NUMBER = r"(?:0(?:\.\d+)?|1(?:\.0+)?|\d(?:\.\d+)?e-\d+)"  # as Python writes a number in [0, 1]
PRUNED_FILES = ("pruned.safetensors", "channels.csv", "compensation.csv")
Run = dict[str, Any]  # the wildcards of a run


def variant_name(cls: type, settings: dict[str, Any]) -> str:
    """A name for settings that tells where they differ from the defaults of their class: `bottleneck-32+domain-space`."""
    differences = [(each.name, settings[each.name]) for each in fields(cls) if settings[each.name] != each.default]
    return "+".join(f"{name}-{value}".replace("_", "-").lower() for name, value in differences) or "default"


class Lineage:
    """Answers about one configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    # Networks and criteria

    def layers(self, network: str) -> list[str]:
        """Names of the convolutions that are analysed and pruned; of groups only those that the configuration names."""
        entry = self.config["networks"][network]
        every = [] if entry["coupled"] else PRUNABLE.get(entry["architecture"], [])
        return entry.get("layers", every)

    def coupled(self, network: str) -> bool:
        """Whether groups of layers are pruned."""
        return self.config["networks"][network]["coupled"]

    def rounds(self, network: str, schedule: str) -> int:
        """In how many rounds a schedule prunes and trains."""
        schedules = self.config["networks"][network]["finetuning"]
        return schedules[schedule]["rounds"] if schedule in schedules else 1

    @cached_property
    def all_layers(self) -> list[str]:
        """Layers of all networks, each name once."""
        return list(dict.fromkeys(layer for network in self.config["networks"] for layer in self.layers(network)))

    def calibration(self, criterion: str) -> str:
        """Name of a criterion's calibration."""
        return variant_name(CalibrationSettings, self.config["criteria"][criterion]["calibration"])

    def autoencoder(self, criterion: str) -> str:
        """Name of a criterion's autoencoder."""
        return variant_name(AutoencoderSettings, self.config["criteria"][criterion]["autoencoder"])

    @cached_property
    def calibrations(self) -> dict[str, dict[str, Any]]:
        """Settings of every calibration, by name."""
        return {self.calibration(name): entry["calibration"] for name, entry in self.config["criteria"].items()}

    @cached_property
    def autoencoders(self) -> dict[str, dict[str, Any]]:
        """Settings of every autoencoder, by name."""
        return {self.autoencoder(name): entry["autoencoder"] for name, entry in self.config["criteria"].items()}

    def needs(self, criterion: str) -> frozenset[str]:
        """What the terms of a criterion need."""
        return frozenset().union(*(needs(term) for term in self.config["criteria"][criterion]["terms"]))

    def term_files(self, network: str, seed: int | str, criterion: str) -> dict[str, str]:
        """The tables of those terms of a criterion that are measured on calibration images."""
        path = CALIBRATION.format(network=network, seed=seed, calibration=self.calibration(criterion))
        terms = self.config["criteria"][criterion]["terms"]
        return {term: f"{path}/terms/{term}.csv" for term in terms if needs(term) & {"outputs", "network"}}

    def autoencoder_files(self, network: str, seed: int | str, criterion: str, suffix: str) -> list[str]:
        """Files of a criterion's autoencoders, one a layer; none where no term needs them, or one job makes all scores."""
        if "autoencoder" not in self.needs(criterion) or self.coupled(network):
            return []
        names = {"calibration": self.calibration(criterion), "autoencoder": self.autoencoder(criterion)}
        path = AUTOENCODER.format(network=network, seed=seed, **names)
        return [f"{path}/{layer}.{suffix}" for layer in self.layers(network)]

    def width_criterion(self, criterion: str, widths: str) -> str:
        """The criterion whose scores say how many channels each layer keeps."""
        name = widths.removeprefix("uniform-")
        return criterion if name in ("own", "uniform") else name

    # Runs

    def runs(self, comparison: str) -> list[Run]:
        """All runs of a comparison, each a dict of wildcards, in the order of the configuration, none twice."""
        found = [run for grid in self.config["comparisons"][comparison]["runs"] for run in runs_of(grid)]
        return [dict(items) for items in dict.fromkeys(tuple(run.items()) for run in found)]

    def first_run(self, comparison: str) -> Run:
        """The run whose details are drawn."""
        return self.runs(comparison)[0]

    def drawn_runs(self, comparison: str) -> list[Run]:
        """The trained runs whose curves are drawn: those that share network, seed and size with the first of them."""
        trained = [run for run in self.runs(comparison) if run["schedule"] != "none"]
        return [run for run in trained if all(run[key] == trained[0][key] for key in ("network", "seed", "size"))]

    def method_run(self, comparison: str) -> Run:
        """The first run that fits autoencoders to spectra of single layers, with a layer a quarter into the network."""
        runs = [run for run in self.runs(comparison) if not self.coupled(run["network"])]
        run = next(run for run in runs if sees_spectra(self.config["criteria"][run["criterion"]]))
        layers = self.layers(run["network"])
        names = {"calibration": self.calibration(run["criterion"]), "autoencoder": self.autoencoder(run["criterion"])}
        return run | names | {"layer": layers[len(layers) // 4]}

    def scored(self, comparison: str) -> list[Run]:
        """Each network, seed and criterion of a comparison once, with those that others take their widths from."""
        found = []
        for run in self.runs(comparison):
            for criterion in (run["criterion"], self.width_criterion(run["criterion"], run["widths"])):
                found.append((run["network"], run["seed"], criterion))
        return [dict(zip(("network", "seed", "criterion"), each, strict=True)) for each in dict.fromkeys(found)]

    # Files

    def figure_tables(self, comparison: str, figure: str) -> list[str]:
        """The tables that a figure draws."""
        name = FIGURES[figure].tables
        if name in TABLES:
            return [table_path(comparison, name)]
        if name == "histories":
            return [f"{RUN}/history.csv".format(**run) for run in self.drawn_runs(comparison)]
        first = self.first_run(comparison)
        return [f"{CRITERION}/scores.csv".format(**first) if name == "scores" else f"{self.cut(first)}/channels.csv"]

    def cut(self, run: Run, number: int | None = None) -> str:
        """The folder of the pruned network of a run, or of one of its rounds; the last one by default."""
        rounds = self.rounds(run["network"], run["schedule"])
        return PRUNED.format(**run) if rounds == 1 else ROUND.format(**run | {"round": number or rounds})

    def trained(self, run: Run, number: int) -> str:
        """The folder of what a round of a run has fine-tuned; of the last one it is that of the run."""
        last = number == self.rounds(run["network"], run["schedule"])
        return RUN.format(**run) if last else ROUND.format(**run | {"round": number})

    def run_files(self, run: Run) -> Iterator[str]:
        """Every artifact of a run that is kept; activations and spectra are caches and may be deleted."""
        names = ["baseline.safetensors", "baseline.json"]
        patterns = [f"{NETWORK}/{name}" for name in names] + [f"{CRITERION}/scores.csv", f"{RUN}/metrics.json"]
        yield from (pattern.format(**run) for pattern in patterns)
        rounds = self.rounds(run["network"], run["schedule"])
        for number in range(1, rounds + 1):
            if number > 1:
                yield f"{self.cut(run, number)}/scores.csv"
            yield from (f"{self.cut(run, number)}/{name}" for name in PRUNED_FILES)
            if run["schedule"] != "none":
                yield from (f"{self.trained(run, number)}/{name}" for name in ("finetuned.safetensors", "history.csv"))
        for suffix in ("safetensors", "csv"):
            yield from self.autoencoder_files(run["network"], run["seed"], run["criterion"], suffix)

    def target(self, name: str) -> list[str]:
        """Every artifact of the target's comparisons."""
        files: list[str] = []
        for comparison in self.config["targets"][name]:
            entry = self.config["comparisons"][comparison]
            files += [figure_path(comparison, figure, suffix) for figure, suffix in product(entry["figures"], ("png", "pdf"))]
            files += [table_path(comparison, table) for table in entry["tables"]]
            if "runs" in entry["tables"]:
                files += [path for run in self.runs(comparison) for path in self.run_files(run)]
        return list(dict.fromkeys(files))


def runs_of(grid: dict[str, Any]) -> Iterator[Run]:
    """The runs of a grid, as wildcards."""
    sizes = [f"{key}-{float(value)}" for key, prefix in SIZES.items() for value in grid[prefix]]
    sizes += [f"macs-{float(both['macs'])}-params-{float(both['params'])}" for both in grid["budgets"]]
    axes = ("networks", "seeds", "criteria", "widths", "compensations", "schedules")
    for network, seed, criterion, widths, size, compensation, schedule in product(
        *(grid[axis] for axis in axes[:4]), sizes, *(grid[axis] for axis in axes[4:])
    ):
        yield {
            "network": network,
            "seed": seed,
            "criterion": criterion,
            "widths": widths,
            "size": size,
            "compensation": compensation,
            "schedule": schedule,
        }


SIZE = rf"(?:(threshold|params)-({NUMBER})|(macs)-({NUMBER})(?:-(params)-({NUMBER}))?)"
SIZES = {"threshold": "thresholds", "macs": "macs", "params": "params"}  # kind of a size -> key of a grid


def size_of(size: str) -> dict[str, float]:
    """What a size such as `threshold-0.6` asks for, by kind; ValueError where a number is not written as Python writes it."""
    found = re.fullmatch(SIZE, size)
    if found is None:
        raise ValueError(f"{size}: is no size; write threshold-0.6, macs-0.5, params-0.5 or macs-0.5-params-0.4")
    values = {kind: float(text) for kind, text in zip(found.groups()[::2], found.groups()[1::2], strict=True) if kind}
    right = "-".join(f"{kind}-{value}" for kind, value in values.items())
    if size != right:
        raise ValueError(f"{size}: write the number as {right}")
    if 0 in (values.get("macs"), values.get("params")):
        raise ValueError(f"{size}: nothing would be left; give a share above 0")
    return values


def table_path(comparison: str, table: str) -> str:
    """Where a table of a comparison lies."""
    return f"results/tables/{comparison}{TABLES[table].suffix}.csv"


def figure_path(comparison: str, figure: str, suffix: str) -> str:
    """Where a figure of a comparison lies."""
    return f"results/figures/{comparison}/{figure}.{suffix}"
