import ast
import json
from itertools import product
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from scap.layers import PRUNABLE
from scap.sources import check_raw_files, missing_files, raw_files
from workflow.configuration import check_references, check_schema

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


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    network="|".join(config["networks"]),
    seed=r"\d+",
    calibration="|".join(config["calibrations"]),
    autoencoder="|".join(config["autoencoders"]),
    criterion="|".join(config["criteria"]),
    comparison="|".join(config["comparisons"]),
    figure="|".join(FIGURES),
    threshold=r"0(\.\d+)?|1(\.0+)?",
    track=r"[a-z0-9-]+",
    layer=r"[\w.]+",


def log_of(path):
    return f"logs/{path.removeprefix('results/')}.log"


def benchmark_of(path):
    return f"logs/{path.removeprefix('results/')}.benchmark.tsv"


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
    """The modules that a script imports, directly or not: an edit of one of them reruns what was made with it."""
    found, queue = set(), [BASE / "workflow/scripts" / script]
    while queue:
        for node in ast.walk(ast.parse(queue.pop().read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in filter(None, names):
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


def of_runs(pattern):
    """Input function: a file pattern for every run of the comparison."""
    return lambda wildcards: [pattern.format(**run) for run in runs(wildcards.comparison)]


def of_first(pattern):
    """Input function: a file pattern for the run of the comparison that is drawn in detail."""
    return lambda wildcards: pattern.format(**runs(wildcards.comparison)[0])


def method_run(comparison):
    """The first run whose criterion is SCAP itself, with a layer in the middle of the network, as wildcards."""
    scap = [run for run in runs(comparison) if config["criteria"][run["criterion"]]["method"] == "scap"]
    if not scap:
        raise WorkflowError(f"config: comparisons.{comparison}: no criterion of method scap; the figure 'method' needs one")
    entry = config["criteria"][scap[0]["criterion"]]["autoencoder"]
    names = layers(scap[0]["network"])
    return scap[0] | {
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


def target(name):
    """Every artifact of the target's comparisons; activations and spectra are caches and may be deleted."""
    files = []
    for comparison in config["targets"][name]:
        files += expand(f"results/figures/{comparison}/{{figure}}.{{suffix}}", figure=FIGURES, suffix=["png", "pdf"])
        files.append(f"results/tables/{comparison}.csv")
        for run in runs(comparison):
            files += [pattern.format(**run) for pattern in (f"{PRUNED}/pruned.safetensors", f"{RUN}/finetuned.safetensors")]
            files.append(f"{CRITERION}/scores.csv".format(**run))
            files += autoencoders(run["network"], run["seed"], run["criterion"], "safetensors")
            files.append(f"{NETWORK}/baseline.safetensors".format(**run))
    return list(dict.fromkeys(files))
