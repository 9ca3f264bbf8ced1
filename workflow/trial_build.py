"""Layers that a network does not have or that cannot be pruned, and budgets that it cannot meet, are told before it is trained.

Layers of built-in architectures are known by name. All else takes PyTorch: a network is built with fresh weights and traced in
a process of its own, where something of it is planned. What fails there otherwise is left to the jobs.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from scap.data.sources import class_folders
from scap.models.names import PRUNABLE
from workflow.lineage import size_of
from workflow.network_checks import check_data

WRONG = 3  # status of the process where it has printed what is wrong
TRAININGS = ("baseline", "baseline_from_weights")
Section = dict[str, Any]


def problem_of_networks(dag: Any, config: Section) -> str:
    """What is wrong with the layers, or the budgets, of the networks of which a plan makes something; else ""."""
    planned: dict[str, list[Any]] = {}
    for job in dag.needrun_jobs():
        if name := job.wildcards_dict.get("network"):
            planned.setdefault(name, []).append(job)
    for name in sorted(planned):
        entry, rules = config["networks"][name], {job.rule.name for job in planned[name]}
        named = "layers" in entry and entry["architecture"] not in PRUNABLE
        budgets = _budgets(planned[name]) if rules & set(TRAININGS) else {}  # else the cut is near, and tells it itself
        if named or budgets:
            pruned = any(rule.endswith("prune") for rule in rules)
            if problem := _in_a_process(entry, config["datasets"][entry["dataset"]], pruned, budgets):
                return f"config: networks.{name}{problem}"
    return ""


def _budgets(jobs: list[Any]) -> dict[str, dict[str, float]]:
    """The budgets that networks are cut to, by how a path writes them."""
    sizes = sorted({job.wildcards_dict["size"] for job in jobs if "size" in job.wildcards_dict})
    return {size: budget for size in sizes if "threshold" not in (budget := size_of(size))}


def _in_a_process(*arguments: Any) -> str:
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "workflow.trial_build", json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1] if done.returncode == WRONG else ""


def problem_of(entry: Section, dataset: Section, pruned: bool, budgets: dict[str, dict[str, float]]) -> str:
    """What is wrong with a network, built with fresh weights, as it follows the network's name in a message; else "".

    `pruned`: its layers are to be pruned, not only analysed.
    """
    import torch

    from scap.models.build import build_network

    data = check_data(entry["dataset"], dataset, None)
    classes = len(class_folders(dataset["root"])) if data.in_folder else 100 if dataset["source"] == "cifar100" else 10
    width = {"width": entry["width"]} if entry["architecture"] in PRUNABLE else {}
    network = build_network(entry["architecture"], classes=classes, in_channels=data.channels, **width).eval()
    image = torch.randn(1, data.channels, data.side, data.side)
    if "layers" in entry and (problem := _problem_of_layers(network, image, entry, pruned)):
        return f".layers: {problem}"
    return _problem_of_budgets(network, image, entry, budgets) if budgets else ""


def _problem_of_layers(network: Any, image: Any, entry: Section, pruned: bool) -> str:
    from scap.criterion.activations import check_layers
    from scap.errors import ScapError
    from scap.pruning.surgery import explain

    layers, coupled = entry["layers"], entry["coupled"]
    try:
        check_layers(network, layers, coupled)
    except ScapError as error:
        return str(error)
    if not pruned and not coupled:
        return ""
    table = explain(network, image, coupled=coupled).set_index("layer")
    for layer in layers:
        reason = table["reason"][layer]
        if coupled and not reason and table["group"][layer] != layer:
            reason = f"its group is named by {table['group'][layer]!r}"
        if reason:
            how, instead = ("", "") if coupled else (" alone", ", or set 'coupled: true'")
            return f"layer {layer!r} cannot be pruned{how}: {reason}; leave it out{instead}"
    return ""


def _problem_of_budgets(network: Any, image: Any, entry: Section, budgets: dict[str, dict[str, float]]) -> str:
    from scap.criterion.score import score_network
    from scap.errors import ScapError
    from scap.pruning.widths import check_within_reach

    layers = entry.get("layers") or PRUNABLE.get(entry["architecture"])
    table = score_network(network, image, layers=layers, coupled=entry["coupled"], criterion="l1")
    least = {key: entry[key] for key in ("multiple", "min_channels")}
    for size, budget in budgets.items():
        try:
            check_within_reach(table, network, image, budget, **least)
        except ScapError as error:
            lower = ", or lower 'multiple' or 'min_channels'" if max(least.values()) > 1 else ""
            return f": {size}: {error}{lower}"
    return ""


if __name__ == "__main__":
    found = ""
    with suppress(BaseException):  # the network may be anyone's
        found = problem_of(*json.loads(sys.argv[1]))
    if found:
        print(f"\n{' '.join(found.split())}")
        sys.exit(WRONG)
