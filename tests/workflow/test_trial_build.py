"""Layers that are none or cannot be pruned, and budgets that cannot be met, are refused before a network is trained."""

import json
import subprocess
import sys

import pytest
from tiny import CONFIG

from workflow.trial_build import WRONG, problem_of

NETWORK = """
from torch import nn

print("any word of one's own")

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.outer(self.inner(x).relu())

def make(classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3), nn.ReLU(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )

def broken(classes):
    raise ValueError
"""
SIZES = {"width": 1, "multiple": 1, "min_channels": 1}
ALONE = "it shares its channels with '0'; leave it out, or set 'coupled: true'"


def asked(folder, layers, coupled=False, pruned=True, function="make"):
    """The arguments of `problem_of`."""
    (folder / "nets.py").write_text(NETWORK)
    entry = {"architecture": f"{folder}/nets.py:{function}", "layers": layers, "coupled": coupled, "dataset": "digits"}
    return entry | SIZES, {"source": "digits"}, pruned, {}


@pytest.mark.parametrize(
    ("layers", "coupled", "pruned", "problem"),
    [
        (["2.inner"], False, True, ""),
        (["2.iner"], False, False, "layer '2.iner' is no ungrouped convolution; choose from 0, 2.inner, 2.outer"),
        (["1"], False, True, "layer '1' is no ungrouped convolution (it is a ReLU); choose from 0, 2.inner, 2.outer"),
        (["2.inner", "2.outer"], False, True, f"layer '2.outer' cannot be pruned alone: {ALONE}"),
        (["2.inner", "2.outer"], False, False, ""),
        (["0", "2.inner"], True, False, ""),
        (["6"], True, False, "layer '6' is no convolution or linear layer; choose from 0, 2.inner, 2.outer, 5"),
        (["2.outer"], True, False, "layer '2.outer' cannot be pruned: its group is named by '0'; leave it out"),
    ],
)
def test_layers_that_are_none_or_cannot_be_pruned_are_named(tmp_path, layers, coupled, pruned, problem):
    assert problem_of(*asked(tmp_path, layers, coupled, pruned)) == (problem and f".layers: {problem}")


@pytest.mark.parametrize(
    ("entry", "budget", "problem"),
    [
        ({"layers": ["2.inner"]}, {"macs": 0.5}, ""),
        ({"layers": ["2.inner"]}, {"macs": 0.17}, "the smallest plan leaves 0.1765 of the macs; raise it, or prune more"),
        ({"layers": ["2.inner"]}, {"macs": 0.5, "params": 0.2}, "the smallest plan leaves 0.1765 of the macs, 0.2"),
        ({"layers": ["2.inner"], "min_channels": 4}, {"macs": 0.5}, "the smallest plan leaves 0.5"),
        ({"layers": ["2.inner"], "multiple": 8}, {"macs": 0.5}, "the smallest plan leaves 1.0000 of the macs"),
        ({"coupled": True}, {"macs": 0.1}, ""),
        ({"coupled": True, "min_channels": 3}, {"macs": 0.1}, "the smallest plan leaves 0."),
        ({"architecture": "vgg16", "width": 0.0625}, {"params": 0.1}, ""),
        ({"architecture": "vgg16", "width": 0.0625, "min_channels": 4}, {"params": 0.01}, "the smallest plan leaves 0.0"),
    ],
)
def test_budgets_that_cannot_be_met_are_named(tmp_path, entry, budget, problem):
    (tmp_path / "nets.py").write_text(NETWORK)
    whole = {"architecture": f"{tmp_path}/nets.py:make", "dataset": "digits", "coupled": False, **SIZES, **entry}
    found = problem_of(whole, {"source": "digits"}, True, {"some-size": budget})
    assert found.startswith(problem and f": some-size: the budget cannot be met: {problem}")
    assert bool(found) == bool(problem)
    assert found.endswith(", or lower 'multiple' or 'min_channels'") == (bool(found) and len(entry) > 1)


def test_a_share_in_a_path_that_is_none_is_named():
    whole = {"architecture": "vgg16", "dataset": "digits", "coupled": False, **SIZES, "width": 0.0625}
    found = problem_of(whole, {"source": "digits"}, True, {"macs-5.0": {"macs": 5.0}})
    assert found.startswith(": macs-5.0: macs is 5.0; it must lie in")


@pytest.mark.parametrize(("function", "status"), [("make", WRONG), ("broken", 0)])
def test_what_the_network_itself_says_or_fails_at_is_no_problem_of_its_layers(tmp_path, function, status):
    arguments = json.dumps(asked(tmp_path, ["one"], function=function))
    done = subprocess.run([sys.executable, "-m", "workflow.trial_build", arguments], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].startswith(".layers: layer 'one'" if status else "any word")


def test_a_layer_that_is_none_is_refused_before_any_job(new_project):
    project = new_project()
    (project / "nets.py").write_text(NETWORK)
    with project.edited(CONFIG, "architecture: vgg16\n    width: 0.0625", "architecture: nets.py:make"):
        output = project.snakemake("results/tiny/seed0/baseline.safetensors", succeeds=False)
    assert "error: config: networks.tiny.layers: layer 'conv1_1' is no ungrouped convolution; choose from 0" in output
    assert "Traceback" not in output
    assert not (project / "results").exists()


def test_a_budget_that_cannot_be_met_is_refused_before_the_training(new_project):
    project = new_project()
    path = "results/tiny/seed0/{}/widths-own/macs-0.0001/compensation-none/none/metrics.json"
    output = project.snakemake(path.format("scap"), succeeds=False)
    assert "error: config: networks.tiny: macs-0.0001: the budget cannot be met: the smallest plan leaves 0." in output
    assert "Traceback" not in output
    assert not (project / "results").exists()
