"""Coupled layers and rounds in the workflow: what the library does with `coupled=True` and `prune_in_rounds`."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Project
from tiny import CONFIG, NOTHING

import scap
from scap.errors import DamagedFile
from scap.models.build import build_network
from scap.models.layers import weighted_layers
from scap.pruning.files import read_metadata
from scap.tensors import save_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow/scripts"))
import network_prune
import network_scores
from dataset import calibration_images, open_dataset

NAME = "timm:test_efficientnet"  # 100,000 parameters: depthwise convolutions, gates, a residual stream
ARGUMENTS = {"classes": 3, "in_channels": 1}
SHAPE = (1, 1, 32, 32)
ARCHITECTURE = {"architecture": NAME, "holdout": 4}
CALIBRATION = {"images": 12, "outputs": "activated", "dtype": "float16"}
FULL = {"how": "full", "images": 12, "ridge": 0.01}
RUN = "results/tiny/seed0/l1/widths-own/macs-0.4/compensation-norms/twice"
CONFIGURATION = """
datasets:
  digits: {source: digits}
networks:
  tiny:
    architecture: "timm:test_efficientnet"
    dataset: digits
    coupled: true
    train_images: 64
    baseline: {epochs: 0, batch_size: 32, learning_rate: 0.05}
    finetuning:
      short: {epochs: 1, batch_size: 32, learning_rate: 0.05}
      twice: {like: short, rounds: 2}
criteria:
  l1: {terms: {l1: 1}, together: max, calibration: {images: 16}}
  fidelity: {terms: {fidelity: 1}, autoencoder: {bottleneck: 2, epochs: 2}, calibration: {images: 16}}
compensations:
  none: {how: none}
  norms: {how: batch-norm, images: 32}
comparisons:
  groups:
    runs:
      - &groups {networks: [tiny], seeds: [0], criteria: [l1], macs: [0.4], compensations: [norms], schedules: [twice]}
      - {<<: *groups, criteria: [fidelity], widths: [l1], macs: [], thresholds: [0.5], compensations: [none], schedules: [none]}
    figures: [channels]
targets:
  all: [groups]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network with coupled layers, and images."""
    path = tmp_path_factory.mktemp("coupled")
    torch.manual_seed(0)
    network = build_network(NAME, **ARGUMENTS).eval()
    scap.save_network(path / "baseline", network, architecture=NAME, arguments=ARGUMENTS, example_shape=SHAPE)
    pixels = torch.randint(0, 256, (20, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, labels = {"train_images": pixels, "test_images": pixels}, torch.arange(20) % 3
    save_tensors(path / "data", images | {"train_labels": labels, "test_labels": labels})
    return path


@pytest.fixture
def images(folder):
    return calibration_images(open_dataset(str(folder / "data"), ARCHITECTURE), 12, 0, "cpu")[0]


def scored(folder, network, name, pruned=False):
    criterion = {"terms": {"l1": 1}, "together": "sum", "autoencoder": {}, "calibration": CALIBRATION}
    cfg = {"architecture": ARCHITECTURE, "layers": None, "coupled": True, "pruned": pruned, "criterion": criterion}
    inputs = (str(folder / network), str(folder / "data"))
    network_scores.make_scores(*inputs, cfg, 0, str(folder / name), "cpu", lambda values: None)
    return str(folder / name)


def cut(folder, scores, model, plan, number=1, rounds=1, **inputs):
    settings = {"uniform": False, "multiple": 1, "min_channels": 1} | plan
    cfg = {"architecture": ARCHITECTURE, "plan": settings, "compensation": FULL, "coupled": True}
    paths = {key: str(folder / name) for key, name in {"baseline": "baseline", "data": "data", **inputs}.items()}
    outputs = [str(folder / f"{model}{suffix}") for suffix in ("", ".channels", ".compensation")]
    paths["scores"] = scores
    network_prune.prune(paths, cfg | {"round": number, "rounds": rounds}, 0, *outputs, lambda values: None)
    return read_metadata(folder / model)["plan"]


def test_two_rounds_are_those_of_the_library(folder, images):
    first = cut(folder, scored(folder, "baseline", "scores"), "first", {"macs": 0.4}, 1, 2)
    scores = scored(folder, "first", "scores2", pruned=True)
    plan = cut(folder, scores, "second", {"macs": 0.4}, 2, 2, network="first")
    criterion, network = scap.CriterionSettings(terms={"l1": 1}, together="sum"), scap.load_network(folder / "baseline")
    expected, wanted = scap.prune_in_rounds(
        network, images, 2, macs=0.4, criterion=criterion, coupled=True, compensate="full", report=None
    )
    assert plan == wanted
    assert all(set(plan[layer]) <= set(first[layer]) for layer in first)
    smaller = scap.load_network(folder / "second")
    torch.testing.assert_close(smaller(images), expected(images))
    table = pd.read_csv(folder / "second.channels", index_col="layer")
    before = {layer: len(module.weight) for layer, module in weighted_layers(network).items()}
    assert table["after"].to_dict() == {layer: len(kept) for layer, kept in plan.items()}
    assert table["before"].to_dict() == {layer: before[layer] for layer in plan}


@pytest.mark.parametrize("plan", [{"threshold": 0.5}, {"uniform": True, "params": 0.5}, {"uniform": True, "threshold": 0.3}])
def test_groups_at_a_threshold_or_a_share(folder, plan):
    """All layers of a group keep as many channels, and another table may say how many."""
    kept = cut(folder, scored(folder, "baseline", "scores"), "pruned", plan)
    for layers in (("blocks.3.0.conv_pw", "blocks.3.0.conv_dw", "blocks.3.0.se.conv_expand"),):
        assert len({tuple(kept[layer]) for layer in layers}) == 1
    assert scap.load_network(folder / "pruned")(torch.zeros(SHAPE)).shape == (1, 3)


def test_a_round_begins_with_what_the_round_before_left(folder):
    scores = scored(folder, "baseline", "scores")
    with pytest.raises(DamagedFile, match="baseline: is an unpruned network, where a pruned one belongs"):
        cut(folder, scores, "pruned", {"macs": 0.5}, 2, 2, network="baseline")


@pytest.fixture(scope="module")
def coupled(new_project):
    """The experiment above, from data to its table."""
    project = new_project(CONFIGURATION)
    project.snakemake()
    return project


def test_the_workflow_prunes_groups_in_rounds(coupled):
    table = pd.read_csv(coupled / "results/tables/groups.csv")
    assert table["macs_removed"][0] >= 0.6
    assert table["finetune_epochs"].tolist() == [2, 0]
    history = pd.read_csv(coupled / RUN / "history.csv")
    pd.testing.assert_frame_equal(history[:1], pd.read_csv(coupled / RUN / "rounds/1/history.csv"))
    plan = read_metadata(coupled / RUN / "finetuned.safetensors")["plan"]
    assert plan == read_metadata(coupled / RUN / "rounds/2/pruned.safetensors")["plan"]
    assert plan["blocks.3.0.conv_pw"] == plan["blocks.3.0.conv_dw"]
    smaller = scap.load_network(coupled / RUN / "finetuned.safetensors")
    assert scap.count_operations(smaller, torch.zeros(SHAPE))["macs"] == table["macs"][0]


def test_each_round_is_made_of_the_one_before(coupled, tmp_path):
    assert NOTHING in coupled.snakemake("--dry-run")
    project = Project(shutil.copytree(coupled.folder, tmp_path / "copy"))
    (project / RUN / "rounds/1/finetuned.safetensors").unlink()
    with project.edited(CONFIG, "{like: short, rounds: 2}", "{like: short, rounds: 2, momentum: 0.5}"):
        planned = project.plan(f"{RUN}/metrics.json")
    assert planned.keys() == {"round_finetune", "round_scores", "round_prune", "finetune", "evaluate"}
    assert len(planned["round_prune"]) == 1  # of the second round


@pytest.mark.parametrize(
    ("scores", "target"),
    [
        ("results/tiny/seed0/fidelity/scores.csv", "results/tiny/seed0/fidelity/widths-own/threshold-0.4/compensation-none"),
        (f"{RUN}/rounds/2/scores.csv", f"{RUN}/rounds/2"),
    ],
)
def test_no_group_and_no_round_is_pruned_by_the_scores_of_another_criterion(coupled, tmp_path, scores, target):
    project = Project(shutil.copytree(coupled.folder, tmp_path / "copy"))
    (project / target / "pruned.safetensors").unlink(missing_ok=True)
    table = pd.read_csv(project / scores)
    table.assign(score=1 - table["score"]).to_csv(project / scores, index=False)
    printed = project.snakemake(f"{target}/pruned.safetensors", succeeds=False)
    assert f"error: {scores}: the scores of layer " in printed
    assert "are not what this criterion makes of its terms" in printed
