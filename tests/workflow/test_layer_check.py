"""Layers of a network of one's own that are none, or cannot be pruned, are refused before the network is trained."""

import json
import subprocess
import sys

import pytest
from tiny import CONFIG

from workflow.layer_check import WRONG, problem_of

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
ALONE = "it shares its channels with '0'; leave it out, or set 'coupled: true'"


def asked(folder, layers, coupled=False, pruned=True, function="make"):
    """The arguments of `problem_of`."""
    (folder / "nets.py").write_text(NETWORK)
    entry = {"architecture": f"{folder}/nets.py:{function}", "layers": layers, "coupled": coupled, "dataset": "digits"}
    return entry, {"source": "digits"}, pruned


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
    assert problem_of(*asked(tmp_path, layers, coupled, pruned)) == problem


@pytest.mark.parametrize(("function", "status"), [("make", WRONG), ("broken", 0)])
def test_what_the_network_itself_says_or_fails_at_is_no_problem_of_its_layers(tmp_path, function, status):
    arguments = json.dumps(asked(tmp_path, ["one"], function=function))
    done = subprocess.run([sys.executable, "-m", "workflow.layer_check", arguments], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].startswith("layer 'one'" if status else "any word")


def test_a_layer_that_is_none_is_refused_before_any_job(new_project):
    project = new_project()
    (project / "nets.py").write_text(NETWORK)
    with project.edited(CONFIG, "architecture: vgg16\n    width: 0.0625", "architecture: nets.py:make"):
        output = project.snakemake("results/tiny/seed0/baseline.safetensors", succeeds=False)
    assert "error: config: networks.tiny.layers: layer 'conv1_1' is no ungrouped convolution; choose from 0" in output
    assert "Traceback" not in output
    assert not (project / "results").exists()
