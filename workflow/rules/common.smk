import locale
import os
import re
from functools import cache
from pathlib import Path

from scap.criterion.terms import TERMS, needs
from scap.data.sources import FOLDER, check_raw_files, missing_files, raw_files, survey_folder
from scap.models.checkpoints import check_checkpoint
from scap.models.names import own_function
from workflow.cluster import remove_leftovers, wait_for_earlier_jobs
from workflow.code import code_of, code_of_function
from workflow.configuration import load_configuration
from workflow.figures import FIGURES, TABLES
from workflow.lineage import AUTOENCODER, CALIBRATION, CRITERION, NETWORK, PRUNED, ROUND, RUN, SIZE, Lineage, size_of
from workflow.machine import has_gpu
from workflow.memory import keep_memory
from workflow.network_checks import folder_settings
from workflow.records import export_records, restore_lost_records
from workflow.references import check_made, check_references

BASE = Path(workflow.basedir)
# Threads of a job that wait for each other leave their core meanwhile: spinning, they crawl on a machine with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A job asks git which commit this is; with the lock that git takes to note what it saw, a user's own commit could fail.
os.environ.setdefault("GIT_OPTIONAL_LOCKS", "0")
keep_memory()

encoding = locale.getpreferredencoding(False)
if encoding.lower() not in ("utf-8", "utf8"):  # Snakemake's own files hold captions and paths, and would fail after the job
    raise SystemExit(
        f"error: the terminal's encoding, {encoding}, is not UTF-8, in which files are written: export PYTHONUTF8=1"
    )
try:
    checked = load_configuration(BASE / "config", workflow.overwrite_configfiles, workflow.config_settings.config)
except ValueError as error:
    raise SystemExit(f"error: {error}")
if workflow.is_main_process:
    restore_lost_records()
config.clear()
config.update(checked)
lineage = Lineage(config)


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    network="|".join(config["networks"]),
    seed="0|[1-9][0-9]{0,9}",  # one spelling of each
    calibration="|".join(map(re.escape, lineage.calibrations)),
    autoencoder="|".join(map(re.escape, lineage.autoencoders)),
    term="|".join(TERMS),
    criterion="|".join(config["criteria"]),
    widths="own|(uniform-)?(" + "|".join(config["criteria"]) + ")|uniform",
    size=SIZE,
    compensation="|".join(config["compensations"]),
    schedule=r"[a-z0-9-]+",
    round=r"[1-9]\d?",
    comparison="|".join(config["comparisons"]),
    figure="|".join(FIGURES),
    layer="|".join(re.escape(layer) for layer in lineage.all_layers) or "(?!)",


def refuse(message):
    """End with one line; an error that an input function raises would come with Snakemake's traceback."""
    raise SystemExit(f"error: {message}")


def log_of(path):
    return f"logs/{path.removeprefix('results/')}.log"


def benchmark_of(path):
    return f"logs/{path.removeprefix('results/')}.benchmark.tsv"


def code(script, *roots):
    """What a script's code means: a change reruns what was made with it, a comment or another layout does not."""
    return code_of(script, *roots, without=("scap.criterion.terms:TERMS",))


def term_code(terms):
    """The functions of terms, for `code`."""
    return [f"scap.criterion.terms:{term.replace('-', '_')}" for term in terms]


def criterion_code(wildcards):
    """The code of all scores of a criterion in one job."""
    return code("network_scores.py", *term_code(config["criteria"][wildcards.criterion]["terms"]))


def more(amount):
    """A resource that grows with every attempt: a job killed for time or memory is tried again with more."""
    return lambda wildcards, attempt: amount * attempt


def gpus(wildcards):
    """GPUs for a job that uses one, where the network wants any."""
    return min(1, config["networks"][wildcards.network]["gpu"])


def every_gpu(wildcards):
    """GPUs for a job that uses as many as the network wants."""
    return config["networks"][wildcards.network]["gpu"]


def processes(wildcards):
    """Processes that share a training: one for each GPU, or one."""
    return max(1, every_gpu(wildcards))


def training_cores(wildcards):
    """Cores of a baseline's training: all, or one where it has a GPU, which other jobs may share."""
    return 1 if gpus(wildcards) and has_gpu() else workflow.resource_settings.cores or 1


def section(name, key, without=()):
    """The part of the configuration that one rule reads, as `params` of that rule."""
    return {k: v for k, v in config[name][key].items() if k not in without}


def architecture(network):
    """What builds a network and reads its data."""
    entry = config["networks"][network]
    keys = ("architecture", "width", "dataset", "train_images", "holdout", "normalisation", "weights")
    found = {k: entry[k] for k in keys if k in entry}
    if own := own_function(entry["architecture"]):
        try:
            found["function"] = code_of_function(*own)
        except ValueError as error:
            refuse(f"config: networks.{network}.{error}")
    return found


def named(names):
    """A pattern that fits these names and nothing else."""
    return "|".join(map(re.escape, names)) or "(?!)"


def networks_from(origin):
    """A pattern that fits the networks whose baseline comes from there."""

    def origin_of(entry):
        if "weights" not in entry:
            return "training"
        if "baseline" in entry:
            return "weights, then training"
        return "named weights" if isinstance(entry["weights"], str) else "checkpoint"

    return named(name for name, entry in config["networks"].items() if origin_of(entry) == origin)


def checkpoint_file(wildcards):
    """The checkpoint of a network, verified before any job; what was made of it and restored does not need it."""
    weights = config["networks"][wildcards.network]["weights"]
    if not os.path.exists(weights["file"]) and os.path.exists(f"{NETWORK}/baseline.safetensors".format(**wildcards)):
        return weights["file"]
    try:
        check_checkpoint(weights["file"], weights.get("sha256"))
    except ValueError as error:
        refuse(f"config: networks.{wildcards.network}.weights: {error}")
    return weights["file"]


def dataset(wildcards):
    return f"results/data/{config['networks'][wildcards.network]['dataset']}.safetensors"


def sources(wildcards):
    """The official files of a data set, verified before any job; those that are missing are made by `download`."""
    entry = config["datasets"][wildcards.dataset]
    root = entry.get("root", "")
    missing = missing_files(entry["source"], root)
    if missing and not entry["download"]:
        refuse(
            f"config: datasets.{wildcards.dataset}: {missing[0]} is missing; put the official files there, "
            "set 'root' to their folder, or set 'download: true'"
        )
    if not missing:
        try:
            check_raw_files(entry["source"], root)
        except ValueError as error:
            refuse(error)
    return [Path(root, name) for name in raw_files(entry["source"])]


@cache
def survey(name):
    """What names and sizes tell of the folder of a data set, checked before any job against all that reads it.

    Once in a run, of a data set that its targets read; the other jobs of a cluster do not ask.
    """
    try:
        found = survey_folder(config["datasets"][name]["root"])
    except ValueError as error:
        refuse(f"config: datasets.{name}.root: {error}")
    try:
        check_references(config, {name: found.train})
    except ValueError as error:
        refuse(error)
    return found


def surveyed(wildcards):
    """No files, as there may be a million: a folder is looked through, and its digest is a parameter of the list."""
    survey(wildcards.dataset)
    return []


def folder_list(wildcards):
    """What image_list.py reads in its `params`."""
    entry = config["datasets"][wildcards.dataset]
    return {"root": entry["root"], "settings": folder_settings(entry), "digest": survey(wildcards.dataset).digest}


def trained_weights(wildcards):
    """The file that weights are read from, where they are a checkpoint."""
    named_so = isinstance(config["networks"][wildcards.network]["weights"], str)
    return [] if named_so else checkpoint_file(wildcards)


def spectra(wildcards):
    """What the autoencoder reads: spectra, or the activations themselves for `domain: space`."""
    path = CALIBRATION.format(**wildcards)
    in_space = lineage.autoencoders[wildcards.autoencoder]["domain"] == "space"
    return f"{path}/activations.safetensors" if in_space else f"{path}/spectra/{wildcards.layer}.safetensors"


def term_inputs(wildcards):
    """What a term is measured on: cached activations, or the network and its images."""
    files = {"baseline": f"{NETWORK}/baseline.safetensors".format(**wildcards)}
    if "outputs" in needs(wildcards.term):
        files["activations"] = f"{CALIBRATION}/activations.safetensors".format(**wildcards)
    if "network" in needs(wildcards.term):
        files["data"] = dataset(wildcards)
    return files


def score_inputs(wildcards):
    """What the terms of a criterion need, and nothing else."""
    entry = (wildcards.network, wildcards.seed, wildcards.criterion)
    return {
        "baseline": f"{NETWORK}/baseline.safetensors".format(**wildcards),
        "terms": list(lineage.term_files(*entry).values()),
        "fidelities": lineage.autoencoder_files(*entry, "csv"),
    }


def width_scores(wildcards):
    """The score table that decides how many channels a layer keeps, where it is not the criterion's own."""
    other = lineage.width_criterion(wildcards.criterion, wildcards.widths)
    return [] if other == wildcards.criterion else [f"{NETWORK}/{other}/scores.csv".format(**wildcards)]


def asked_size(wildcards):
    """What the size in a path asks for."""
    try:
        return size_of(wildcards.size)
    except ValueError as error:
        refuse(error)


def pruning(wildcards):
    """How many channels a layer keeps, and what follows the cut."""
    network = config["networks"][wildcards.network]
    return {
        "architecture": architecture(wildcards.network),
        "plan": {
            "layers": lineage.layers(wildcards.network),
            "uniform": wildcards.widths.startswith("uniform"),
            **asked_size(wildcards),
            "multiple": network["multiple"],
            "min_channels": network["min_channels"],
        },
        "compensation": section("compensations", wildcards.compensation),
    }


def network_scores(wildcards):
    """What network_scores.py reads in its `params`: the criterion with all its settings, and which layers."""
    entry = config["networks"][wildcards.network]
    coupled = entry["coupled"]
    return {
        "architecture": architecture(wildcards.network),
        "layers": entry.get("layers") if coupled else lineage.layers(wildcards.network),
        "coupled": coupled,
        "criterion": config["criteria"][wildcards.criterion],
    }


def network_pruning(wildcards, number=1, rounds=1):
    """The same of network_prune.py: as `pruning`, and which round it is."""
    settings = pruning(wildcards)
    del settings["plan"]["layers"]
    return settings | {"coupled": lineage.coupled(wildcards.network), "round": number, "rounds": rounds}


def rounds(wildcards):
    """In how many rounds a run is pruned; a run that cannot be is refused."""
    found = lineage.rounds(wildcards.network, wildcards.schedule)
    size, widths = asked_size(wildcards), wildcards.widths
    if found > 1 and ("threshold" in size or widths not in ("own", "uniform")):
        refuse(
            f"'{wildcards.schedule}' prunes in {found} rounds, which want a budget (macs or params) and widths own or uniform"
        )
    return found


def last_cut(wildcards):
    """The pruned network that is fine-tuned in the end."""
    rounds(wildcards)
    return f"{lineage.cut(dict(wildcards))}/pruned.safetensors"


def round_before(wildcards):
    """What a round of pruning begins with: the fine-tuned network of the one before, or the baseline."""
    number = int(wildcards.round)
    if number > rounds(wildcards):
        refuse(f"'{wildcards.schedule}' of {wildcards.network} has no round {number}, but {rounds(wildcards)}")
    if number == 1:
        return f"{NETWORK}/baseline.safetensors".format(**wildcards)
    return f"{lineage.trained(dict(wildcards), number - 1)}/finetuned.safetensors"


def scores_of_round(wildcards):
    """The scores of a round: those of the baseline, or of what the round before left."""
    return (f"{CRITERION}/scores.csv" if wildcards.round == "1" else f"{ROUND}/scores.csv").format(**wildcards)


def earlier_histories(wildcards):
    """The epochs of the rounds before the last one."""
    earlier = range(1, lineage.rounds(wildcards.network, wildcards.schedule))
    return [f"{lineage.trained(dict(wildcards), number)}/history.csv" for number in earlier]


def compensation_data(wildcards):
    """The data set, where the cut is compensated on calibration images."""
    return [] if config["compensations"][wildcards.compensation]["how"] == "none" else dataset(wildcards)


def finetuning(wildcards):
    """Settings of a schedule of fine-tuning."""
    schedules = config["networks"][wildcards.network]["finetuning"]
    if wildcards.schedule not in schedules:
        names = ", ".join(["none", *schedules])
        refuse(f"'{wildcards.schedule}' is no schedule of {wildcards.network}; choose one of {names}")
    wanted, allowed = every_gpu(wildcards), workflow.global_resources.get("gpu")
    if workflow.is_main_process and wanted > 1 and allowed is not None and wanted > allowed.value:
        refuse(
            f"config: networks.{wildcards.network}.gpu: {wanted} are wanted at once, but this run may use {allowed.value}; "
            f"add --resources gpu={wanted}, or raise `resources: gpu` of the profile"
        )
    return {key: value for key, value in schedules[wildcards.schedule].items() if key != "rounds"}


def training(wildcards):
    """What finetune.py reads in its `params`."""
    shared = {"processes": processes(wildcards)} if processes(wildcards) > 1 else {}
    return {"architecture": architecture(wildcards.network), "training": finetuning(wildcards), **shared}


def teacher(wildcards):
    """The baseline, where the schedule distils from it."""
    return [f"{NETWORK}/baseline.safetensors".format(**wildcards)] if finetuning(wildcards)["distillation"] else []


def evaluated(wildcards):
    """The networks of a run: pruned and, unless its schedule is `none`, fine-tuned."""
    files = {"pruned": last_cut(wildcards)}
    if wildcards.schedule != "none":
        finetuning(wildcards)
        files["finetuned"] = f"{RUN}/finetuned.safetensors".format(**wildcards)
    return files


def of_runs(pattern, trained=False):
    """Input function: a file pattern for every run of the comparison, or those that are `trained`."""

    def files(wildcards):
        runs = lineage.runs(wildcards.comparison)
        return [pattern.format(**run) for run in runs if not trained or run["schedule"] != "none"]

    return files


def of_scored(pattern):
    """Input function: a file pattern for every network, seed and criterion that a comparison scores, each file once."""
    return lambda wildcards: list(dict.fromkeys(pattern.format(**entry) for entry in lineage.scored(wildcards.comparison)))


def can_be_made(wildcards, name):
    """Refuse a table or figure that was asked for by its path, where it cannot be made of the comparison's runs."""
    try:
        check_made(f"comparisons.{wildcards.comparison}", config["comparisons"][wildcards.comparison], {name}, config)
    except ValueError as error:
        refuse(error)


def drawn_tables(wildcards):
    """The tables that a figure draws."""
    can_be_made(wildcards, wildcards.figure)
    return lineage.figure_tables(wildcards.comparison, wildcards.figure)


def method_file(pattern):
    """Input function: a file pattern for the run that the figure `method` draws."""

    def file(wildcards):
        can_be_made(wildcards, "method")
        return pattern.format(**lineage.method_run(wildcards.comparison))

    return file


def method_settings(wildcards):
    """Layer and autoencoder of the figure `method`."""
    run = lineage.method_run(wildcards.comparison)
    return {"layer": run["layer"], "autoencoder": lineage.autoencoders[run["autoencoder"]]}


def sensitivity_settings(wildcards):
    """The runs that a table of sensitivity compares, with the settings of each criterion spelt out."""
    can_be_made(wildcards, "sensitivity")
    runs = lineage.runs(wildcards.comparison)
    networks = {run["network"] for run in runs}
    return {
        "runs": runs,
        "scored": lineage.scored(wildcards.comparison),
        "criteria": {run["criterion"]: section("criteria", run["criterion"], without=("together",)) for run in runs},
        "widths": {
            f"{run['criterion']} {run['widths']}": lineage.width_criterion(run["criterion"], run["widths"]) for run in runs
        },
        "networks": {
            name: {key: config["networks"][name][key] for key in ("multiple", "min_channels")}
            | {"layers": lineage.layers(name)}
            for name in sorted(networks)
        },
    }


def figure_settings(wildcards):
    """What a figure says beside its tables: the threshold, and the labels of curves."""
    first = lineage.first_run(wildcards.comparison)
    tables = FIGURES[wildcards.figure].tables
    settings = {"caption": FIGURES[wildcards.figure].caption, "function": FIGURES[wildcards.figure].function}
    if tables == "scores":
        threshold = {key: value for key, value in size_of(first["size"]).items() if key == "threshold"}
        settings["arguments"] = {"title": f"{first['network']}, {first['criterion']}"} | threshold
    if tables == "histories":
        drawn = lineage.drawn_runs(wildcards.comparison)
        settings["labels"] = labels(drawn)
        settings["arguments"] = {"title": "{network}, seed {seed}, {size}".format(**drawn[0])}
    return settings


def labels(runs):
    """What tells runs apart: the criterion, and whatever else differs among them."""
    axes = [axis for axis in ("widths", "compensation", "schedule") if len({run[axis] for run in runs}) > 1]
    return [", ".join([run["criterion"], *(f"{run[axis]}" for axis in axes)]) for run in runs]


def scored_here(criterion):
    """The terms that are computed when scores are fused, as they need neither cached activations nor the network."""
    return [term for term in config["criteria"][criterion]["terms"] if not needs(term) & {"outputs", "network"}]
