import ast
import json
import re
from itertools import product
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from scap.models.names import PRUNABLE
from scap.data.sources import check_raw_files, missing_files, raw_files
from workflow.cluster import remove_leftovers, wait_for_earlier_jobs
from workflow.configuration import check_references, check_schema, sees_spectra
from workflow.records import export_records

SCHEMA = workflow.source_path("../../config/schema.json")
BASE = Path(workflow.basedir)

try:
    check_schema(config, json.loads(Path(SCHEMA).read_text()))
    validate(config, SCHEMA)  # fills in the defaults
    check_references(config)
except ValueError as error:
    raise WorkflowError(str(error))

# A path names what made the file; logs and benchmarks of a job stand under logs/ at the same path.
NETWORK = "results/{network}/seed{seed}"
CALIBRATION = f"{NETWORK}/calibrations/{{calibration}}"
AUTOENCODER = f"{NETWORK}/autoencoders/{{autoencoder}}"
CRITERION = f"{NETWORK}/{{criterion}}"
PRUNED = f"{CRITERION}/threshold-{{threshold}}"
RUN = f"{PRUNED}/{{track}}"
FIGURES = ["tradeoff", "finetuning", "method", "fidelity", "channels"]


container: "docker://python:3.11"  # before the rules, which inherit it


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    network="|".join(config["networks"]),
    seed=r"\d+",
    calibration="|".join(config["calibrations"]),
    autoencoder="|".join(config["autoencoders"]),
    criterion="|".join(config["criteria"]),
    comparison="|".join(config["comparisons"]),
    study="|".join(config["studies"]) or "(?!)",
    figure="|".join(FIGURES),
    threshold=r"0(\.\d+)?|1(\.0+)?|\d(\.\d+)?e-\d+",  # as Python writes a number in [0, 1]
    track=r"[a-z0-9-]+",
    layer="|".join(re.escape(layer) for names in PRUNABLE.values() for layer in names),


def log_of(path):
    return f"logs/{path.removeprefix('results/')}.log"


def benchmark_of(path):
    return f"logs/{path.removeprefix('results/')}.benchmark.tsv"


def more(amount):
    """A resource that grows with every attempt: a job killed for time or memory is tried again with more."""
    return lambda wildcards, attempt: amount * attempt


def gpus(wildcards):
    """Graphics processors for a job that uses one, where the network wants any."""
    return config["networks"][wildcards.network]["gpu"]


def layers(network):
    """Names of the convolutions that are analysed and pruned."""
    entry = config["networks"][network]
    return entry.get("layers", PRUNABLE[entry["architecture"]])


def section(name, key, without=()):
    """The part of the configuration that one rule reads, as `params` of that rule."""
    return {k: v for k, v in config[name][key].items() if k not in without}


def architecture(network):
    """What builds a network and reads its data."""
    entry = config["networks"][network]
    keys = ("architecture", "width", "dataset", "train_images", "holdout")
    return {k: entry[k] for k in keys if k in entry}


def dataset(wildcards):
    return f"results/data/{config['networks'][wildcards.network]['dataset']}.safetensors"


def library(script):
    """A script and the modules that it imports, directly or not: an edit of one of them reruns what was made with it.

    As inputs they are compared by content; the profile turns off Snakemake's own look at the dates of scripts.
    """
    queue = [BASE / "workflow/scripts" / script]
    found = set(queue)
    while queue:
        for node in ast.walk(ast.parse(queue.pop().read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):  # a name may be a module too: from scap import figures
                names = [node.module] + [f"{node.module}.{name}" for name in names]
            for name in names:
                path = BASE / f"{name.replace('.', '/')}.py" if "." in name else BASE / f"workflow/scripts/{name}.py"
                if path.exists() and path not in found:
                    found.add(path)
                    queue.append(path)
    return sorted(str(path.relative_to(BASE)) for path in found)


def runs(comparison):
    """All runs of a comparison, each a dict of wildcards, in the order of the configuration, none twice."""
    keys = {
        "network": "networks",
        "seed": "seeds",
        "criterion": "criteria",
        "threshold": "thresholds",
        "track": "tracks",
    }
    all_runs = [
        dict(zip(keys, values))
        for grid in config["comparisons"][comparison]
        for values in product(*(grid[plural] for plural in keys.values()))
    ]
    return [run for index, run in enumerate(all_runs) if run not in all_runs[:index]]


def study_scores(study):
    """Criteria whose scores a study reads: its own, and those that give widths to some of them."""
    names = config["studies"][study]["criteria"]
    return list(dict.fromkeys(other for name in names for other in (name, config["criteria"][name].get("widths_of", name))))


def of_study(pattern):
    """Input function: a file pattern for every seed and criterion of a study, by seed, each file once."""

    def files(wildcards):
        study = config["studies"][wildcards.study]
        every = product([study["network"]], study["seeds"], study_scores(wildcards.study))
        names = (pattern.format(network=network, seed=seed, criterion=criterion) for network, seed, criterion in every)
        return list(dict.fromkeys(names))

    return files


def study_settings(wildcards):
    """A study with each criterion's settings spelt out, those of its autoencoder and calibration too."""
    study = config["studies"][wildcards.study]
    criteria = {}
    for name in study["criteria"]:
        entry = dict(config["criteria"][name])
        if entry["method"] == "scap":
            autoencoder = config["autoencoders"][entry["autoencoder"]]
            entry |= {f"autoencoder.{key}": value for key, value in autoencoder.items()}
            entry |= {f"calibration.{key}": value for key, value in config["calibrations"][autoencoder["calibration"]].items()}
        criteria[name] = entry
    network = study["network"]
    shared = {"layers": layers(network), "multiple": config["networks"][network]["multiple"]}
    return study | shared | {"criteria": criteria, "scored": study_scores(wildcards.study)}


def of_runs(pattern):
    """Input function: a file pattern for every run of the comparison."""
    return lambda wildcards: [pattern.format(**run) for run in runs(wildcards.comparison)]


def method_run(comparison):
    """The first run whose criterion is SCAP itself, on spectra, with a layer a quarter into the network, as wildcards."""
    run = next(run for run in runs(comparison) if sees_spectra(config["criteria"][run["criterion"]], config["autoencoders"]))
    entry = config["criteria"][run["criterion"]]["autoencoder"]
    names = layers(run["network"])
    return run | {
        "autoencoder": entry,
        "calibration": config["autoencoders"][entry]["calibration"],
        "layer": names[len(names) // 4],
    }


def method_file(pattern):
    """Input function: a file pattern for the run that the figure `method` draws."""
    return lambda wildcards: pattern.format(**method_run(wildcards.comparison))


def method_settings(comparison):
    """Layer and autoencoder of the figure `method`."""
    run = method_run(comparison)
    return {"layer": run["layer"], "autoencoder": section("autoencoders", run["autoencoder"], without=("calibration",))}


def autoencoders(network, seed, criterion, suffix):
    """Files of the criterion's autoencoders, one per layer; none for the controls."""
    entry = config["criteria"][criterion]
    if entry["method"] != "scap":
        return []
    path = AUTOENCODER.format(network=network, seed=seed, autoencoder=entry["autoencoder"])
    return [f"{path}/{layer}.{suffix}" for layer in layers(network)]


def strengths(wildcards):
    """RMS and novelty of every output channel, where the criterion's magnitude is one of them."""
    entry = config["criteria"][wildcards.criterion]
    if entry["magnitude_of"] == "filter":
        return []
    calibration = config["autoencoders"][entry["autoencoder"]]["calibration"]
    return [f"{CALIBRATION}/activations.csv".format(calibration=calibration, **wildcards)]


def sources(wildcards):
    """The official files of a data set, verified before any job; those that are missing are made by `download`."""
    entry = config["datasets"][wildcards.dataset]
    root = entry.get("root", "")
    missing = missing_files(entry["source"], root)
    if missing and not entry["download"]:
        raise WorkflowError(
            f"config: datasets.{wildcards.dataset}: {missing[0]} is missing; put the official files there, "
            "set 'root' to their folder, or set 'download: true'"
        )
    if not missing:
        try:
            check_raw_files(entry["source"], root)
        except ValueError as error:
            raise WorkflowError(str(error))
    return [Path(root, name) for name in raw_files(entry["source"])]


def spectra(wildcards):
    """What the autoencoder reads: spectra, or the activations themselves for `domain: space`."""
    entry = config["autoencoders"][wildcards.autoencoder]
    path = CALIBRATION.format(calibration=entry["calibration"], **wildcards)
    return f"{path}/activations.safetensors" if entry["domain"] == "space" else f"{path}/spectra/{wildcards.layer}.safetensors"


def width_scores(wildcards):
    """The score table that decides how many channels a layer keeps, where it is not the criterion's own."""
    other = config["criteria"][wildcards.criterion].get("widths_of")
    return [f"{NETWORK}/{other}/scores.csv".format(**wildcards)] if other else []


def finetuning(wildcards):
    """Settings of a track of fine-tuning."""
    tracks = config["networks"][wildcards.network]["finetuning"]
    if wildcards.track not in tracks:
        raise WorkflowError(f"'{wildcards.track}' is no track of {wildcards.network}; choose one of {', '.join(tracks)}")
    return tracks[wildcards.track]


def teacher(wildcards):
    """The baseline, where the track distils from it."""
    return [f"{NETWORK}/baseline.safetensors".format(**wildcards)] if finetuning(wildcards)["distillation"] else []


def drawn_runs(comparison):
    """The runs whose curves are drawn: those that share network, seed and threshold with the first."""
    keys = ("network", "seed", "threshold")
    first = runs(comparison)[0]
    return [run for run in runs(comparison) if all(run[key] == first[key] for key in keys)]


def figure_tables(wildcards):
    """The tables that a figure draws, by name."""
    comparison = wildcards.comparison
    first = runs(comparison)[0]
    if wildcards.figure == "tradeoff":
        return [f"results/tables/{comparison}.csv"]
    if wildcards.figure == "method":
        return [f"results/tables/{comparison}.method.csv"]
    if wildcards.figure == "finetuning":
        return [f"{RUN}/history.csv".format(**run) for run in drawn_runs(comparison)]
    return [(f"{CRITERION}/scores.csv" if wildcards.figure == "fidelity" else f"{PRUNED}/channels.csv").format(**first)]


def figure_settings(wildcards):
    """What a figure says beside its tables: the threshold, and the labels of curves."""
    first = runs(wildcards.comparison)[0]
    if wildcards.figure == "fidelity":
        return {"threshold": first["threshold"], "title": f"{first['network']}, {first['criterion']}"}
    if wildcards.figure == "finetuning":
        drawn = drawn_runs(wildcards.comparison)
        several = len({run["track"] for run in drawn}) > 1
        return {"labels": [f"{run['criterion']}, {run['track']}" if several else run["criterion"] for run in drawn]}
    return {}


def target(name):
    """Every artifact of the target's comparisons and studies; activations and spectra are caches and may be deleted."""
    files = []
    for comparison in config["targets"][name]:
        if comparison in config["studies"]:
            files += [f"results/tables/{comparison}.csv"]
            files += [f"results/figures/{comparison}/study.{suffix}" for suffix in ("png", "pdf")]
            continue
        files += expand(f"results/figures/{comparison}/{{figure}}.{{suffix}}", figure=FIGURES, suffix=["png", "pdf"])
        files.append(f"results/tables/{comparison}.csv")
        for run in runs(comparison):
            kept = ["baseline.safetensors", "baseline.history.csv", "baseline.json"]
            patterns = [f"{NETWORK}/{name}" for name in kept] + [f"{CRITERION}/scores.csv"]
            patterns += [f"{PRUNED}/{name}" for name in ("pruned.safetensors", "channels.csv")]
            patterns += [f"{RUN}/{name}" for name in ("finetuned.safetensors", "history.csv", "metrics.json")]
            files += [pattern.format(**run) for pattern in patterns]
            for suffix in ("safetensors", "csv"):
                files += autoencoders(run["network"], run["seed"], run["criterion"], suffix)
    return list(dict.fromkeys(files))
