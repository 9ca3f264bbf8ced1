"""`layers` that a network does not have, or that cannot be pruned, are named before it is trained.

Those of built-in architectures are known by name. Any other network must be built and traced, which takes PyTorch: it is done
in a process of its own, for the networks of which something is planned. What fails there otherwise is left to the jobs.
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
from workflow.network_checks import check_data

WRONG = 3  # status of the process where it has printed what is wrong


def wrong_layers(dag: Any, config: dict[str, Any]) -> str:
    """What is wrong with the `layers` of the networks of which a plan makes something; else ""."""
    rules: dict[str, set[str]] = {}
    for job in dag.needrun_jobs():
        if name := job.wildcards_dict.get("network"):
            rules.setdefault(name, set()).add(job.rule.name)
    for name in sorted(rules):
        entry = config["networks"][name]
        if "layers" in entry and entry["architecture"] not in PRUNABLE:
            pruned = any(rule.endswith("prune") for rule in rules[name])
            if problem := _in_a_process(entry, config["datasets"][entry["dataset"]], pruned):
                return f"config: networks.{name}.layers: {problem}"
    return ""


def _in_a_process(*arguments: Any) -> str:
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "workflow.layer_check", json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1] if done.returncode == WRONG else ""


def problem_of(entry: dict[str, Any], dataset: dict[str, Any], pruned: bool) -> str:
    """What is wrong with the layers of a network, built with fresh weights, that are to be analysed or also pruned; else ""."""
    import torch

    from scap.criterion.activations import check_layers
    from scap.errors import ScapError
    from scap.models.build import build_network
    from scap.pruning.surgery import explain

    data, layers, coupled = check_data(entry["dataset"], dataset, None), entry["layers"], entry["coupled"]
    classes = len(class_folders(dataset["root"])) if data.in_folder else 100 if dataset["source"] == "cifar100" else 10
    network = build_network(entry["architecture"], classes=classes, in_channels=data.channels).eval()
    try:
        check_layers(network, layers, coupled)
    except ScapError as error:
        return str(error)
    if not pruned and not coupled:
        return ""
    table = explain(network, torch.randn(1, data.channels, data.side, data.side), coupled=coupled).set_index("layer")
    for layer in layers:
        reason = table["reason"][layer]
        if coupled and not reason and table["group"][layer] != layer:
            reason = f"its group is named by {table['group'][layer]!r}"
        if reason:
            how, instead = ("", "") if coupled else (" alone", ", or set 'coupled: true'")
            return f"layer {layer!r} cannot be pruned{how}: {reason}; leave it out{instead}"
    return ""


if __name__ == "__main__":
    found = ""
    with suppress(BaseException):  # the network may be anyone's
        found = problem_of(*json.loads(sys.argv[1]))
    if found:
        print(f"\n{' '.join(found.split())}")
        sys.exit(WRONG)
