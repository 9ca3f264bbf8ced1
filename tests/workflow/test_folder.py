"""The recipe for a network and images of one's own, on tiny images and a tiny network; and what is refused before any job."""

import importlib
import shutil
import sys
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, Project, jobs
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import CONFIG, NOTHING

from scap.data.torchvision_cure import import_torchvision
from scap.errors import ScapError
from scap.models.build import build_network

sys.path.insert(0, str(ROOT / "workflow/scripts"))
from baseline_from_weights import train_further
from image_list import make_list
from trained_weights import make_network

RECIPE = ("photos", "--configfile", "docs/examples/folder.yaml", "tiny.yaml")
RUN = "results/lite0-photos/seed0"
TINY = """
datasets: {photos: {root: photos, size: 12, resize: 14}}
networks:
  lite0-photos:
    architecture: nets.py:make
    holdout: 0
    baseline: {epochs: 1, batch_size: 8}
    finetuning: {short: {epochs: 1, batch_size: 8}}
criteria: {conditional: {calibration: {images: 16}}}
compensations: {full: {images: 16}}
"""
TARGETS = {"targets": {"all": ["photos"]}}
NETS = """
import torch
from torch import nn

def make(classes):
    layers = []
    for inputs, outputs, groups in ((3, 8, 1), (8, 8, 8), (8, 12, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes))
    with torch.no_grad():
        network[0].weight.copy_(torch.linspace(-0.3, 0.3, 216).sin().view(8, 3, 3, 3))
    return network
"""
TRAINED = torch.linspace(-0.3, 0.3, 216).sin().view(8, 3, 3, 3)  # the weights that NETS brings
PRESET = {"size": 12, "resize": 14, "smallest_crop": 0.5, "interpolation": "bilinear"}


def write_image(path, seed, channel, width=16):
    pixels = np.random.default_rng(seed).integers(0, 120, (14, width, 3), dtype=np.uint8)
    pixels[..., channel] += 130
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_images(root):
    for part, count in (("train", 8), ("val", 3)):
        for channel in range(3):
            for index in range(count):
                write_image(root / part / f"class{channel}" / f"{index}.png", 10 * channel + index, channel)


@pytest.fixture(scope="module")
def made(new_project):
    """The recipe's experiment on top of what it takes from the project's configuration, run from images to figures."""
    shipped = yaml.safe_load((ROOT / CONFIG).read_text())
    project = new_project(yaml.safe_dump({key: shipped[key] for key in ("datasets", "criteria", "compensations")} | TARGETS))
    shutil.copytree(ROOT / "docs/examples", project / "docs/examples")
    (project / "tiny.yaml").write_text(TINY)
    (project / "nets.py").write_text(NETS)
    write_images(project / "photos")
    project.snakemake(*RECIPE)
    return project


@pytest.fixture
def copied(made, tmp_path):
    """A copy that may be altered."""
    return Project(shutil.copytree(made.folder, tmp_path / "copy"))


def planned(project):
    return Counter(job.rule for job in jobs(project.snakemake("--dry-run", *RECIPE)))


def test_the_recipe_prunes_a_trained_network_without_and_with_training(made):
    table = pd.read_csv(made / "results/tables/photos.csv")
    assert table["schedule"].tolist() == ["none", "short"]
    assert (table["macs_removed"] >= 0.5).all()
    assert table["top1_baseline"].between(0, 100).all()
    weights, baseline = (load_file(made / f"{RUN}/{name}.safetensors") for name in ("weights", "baseline"))
    torch.testing.assert_close(weights["0.weight"], TRAINED)
    moved = (baseline["0.weight"] - TRAINED).norm() / TRAINED.norm()
    assert 0 < moved < 0.5  # trained from there, not from scratch
    assert NOTHING in made.snakemake("--dry-run", *RECIPE)


FOLLOWS = {
    **dict.fromkeys(("trained_weights", "baseline_from_weights", "evaluate_baseline", "coupled_scores", "coupled_prune"), 1),
    **{"finetune": 1, "evaluate": 2, "runs_table": 1, "figure": 3, "photos": 1},
}


def test_an_image_that_is_added_or_resized_plans_what_follows(copied):
    write_image(copied / "photos/train/class1/new.png", 5, 1)
    assert planned(copied) == FOLLOWS | {"image_list": 1}
    (copied / "photos/train/class1/new.png").unlink()
    write_image(copied / "photos/val/class1/0.png", 99, 2, width=20)
    assert planned(copied) == FOLLOWS | {"image_list": 1}


def test_all_that_is_made_of_the_users_function_follows_it(copied):
    """By its meaning: a comment is no change."""
    (copied / "nets.py").write_text(NETS.replace("    layers = []", "    layers = []  # of three blocks"))
    assert NOTHING in copied.snakemake("--dry-run", *RECIPE)
    (copied / "nets.py").write_text(NETS.replace("-0.3", "-0.4"))
    assert planned(copied) == FOLLOWS
    (copied / "nets.py").write_text(NETS.replace("def make", "def mine"))
    output = copied.snakemake("--dry-run", *RECIPE, succeeds=False)
    assert "error: config: networks.lite0-photos.architecture nets.py:make: the file has no function 'make'" in output


OTHERS = """
networks:
  as-it-is: {architecture: nets.py:make, weights: own, dataset: photos, coupled: true}
  taken: {architecture: nets.py:make, weights: {file: given.th}, dataset: photos, coupled: true}
  further:
    architecture: nets.py:make
    weights: {file: given.th, leave_out: ["11"]}
    dataset: photos
    coupled: true
    baseline: {epochs: 1, batch_size: 8, learning_rate: 0.01}
"""


def test_weights_may_be_the_baseline_and_a_checkpoint_what_training_starts_from(made):
    (made / "others.yaml").write_text(OTHERS)

    def plan(network, **options):
        return made.snakemake("--dry-run", f"results/{network}/seed0/baseline.json", *RECIPE[1:], "others.yaml", **options)

    assert [job.rule for job in jobs(plan("as-it-is"))] == ["named_weights", "evaluate_baseline"]
    missing = "config: networks.further.weights: given.th: there is no such checkpoint; download it, or correct the path"
    assert missing in plan("further", succeeds=False)
    torch.save({}, made / "given.th")
    assert [job.rule for job in jobs(plan("further"))] == ["trained_weights", "baseline_from_weights", "evaluate_baseline"]
    assert [job.rule for job in jobs(plan("taken"))] == ["checkpoint", "evaluate_baseline"]
    (made / "results/taken/seed0").mkdir(parents=True)
    (made / "results/taken/seed0/baseline.safetensors").touch()
    (made / "given.th").unlink()  # what was made of it and restored does not need it
    assert [job.rule for job in jobs(plan("taken"))] == ["evaluate_baseline"]


def empty_class(project):
    shutil.rmtree(project / "photos/train/class1")
    (project / "photos/train/class1").mkdir()


def few_images(project):
    for index in range(5):
        (project / f"photos/train/class0/{index}.png").unlink()
        (project / f"photos/train/class1/{index}.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, "datasets.photos.root: photos/train/class1: holds no images; add some, or delete the folder"),
        (few_images, "criteria.conditional.calibration.images: 16 are more than the 14 training images of lite0-photos"),
    ],
)
def test_a_folder_that_does_not_do_is_refused_before_any_job(copied, spoil, message):
    spoil(copied)
    output = copied.snakemake("--dry-run", *RECIPE, succeeds=False)
    assert f"error: config: {message}" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 10


def test_a_folder_that_no_target_reads_is_not_looked_through(copied):
    shutil.rmtree(copied / "photos")
    copied.snakemake("--dry-run", "results/data/digits.safetensors", *RECIPE[1:])
    output = copied.snakemake("--dry-run", *RECIPE, succeeds=False)
    assert "error: config: datasets.photos.root: photos/train: there is no such folder; images lie in train/CLASS" in output


@pytest.fixture
def data(tmp_path):
    """A list of images of three classes, as the workflow makes it."""
    write_images(tmp_path / "images")
    make_list({"root": str(tmp_path / "images"), "settings": PRESET, "digest": ""}, str(tmp_path / "data"))
    return str(tmp_path / "data")


def weights_of(data, name, weights, fresh_head=True, seed=0):
    """What the step makes of an architecture and its weights."""
    cfg = {"architecture": {"architecture": name, "width": 1.0, "holdout": 2, "weights": weights}, "fresh_head": fresh_head}
    model = Path(data).with_name("weights")
    make_network(data, cfg, seed, str(model))
    return load_file(model)


def test_a_checkpoint_may_leave_the_head_to_training(data, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    name = f"{tmp_path}/nets.py:make"
    stored = weights_of(data, name, "own")
    save_file(stored | {"11.weight": torch.zeros(7, 12), "11.bias": torch.zeros(7)}, tmp_path / "other.safetensors")
    checkpoint = {"file": str(tmp_path / "other.safetensors"), "prefix": ""}
    with pytest.raises(ScapError, match=r"11\.bias has the shape \(7,\) there .* `leave_out: \[11\]` keeps"):
        weights_of(data, name, checkpoint)
    found = [weights_of(data, name, checkpoint | {"leave_out": ["11"]}, seed=seed) for seed in (0, 0, 1)]
    assert all(torch.equal(each["3.weight"], stored["3.weight"]) for each in found)
    assert torch.equal(found[0]["11.weight"], found[1]["11.weight"])
    assert not torch.equal(found[0]["11.weight"], found[2]["11.weight"])


def test_training_goes_on_from_the_weights(data, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    given = weights_of(data, f"{tmp_path}/nets.py:make", "own")
    architecture = {"architecture": f"{tmp_path}/nets.py:make", "width": 1.0, "holdout": 2, "weights": "own"}
    cfg = {"architecture": architecture, "training": {"epochs": 0, "batch_size": 4, "learning_rate": 0.01}}
    outputs = [str(tmp_path / name) for name in ("baseline", "history")]
    train_further(str(tmp_path / "weights"), data, cfg, 0, "", *outputs, "cpu", lambda row: None)
    assert all(torch.equal(values, given[name]) for name, values in load_file(tmp_path / "baseline").items())


NAME = "torchvision:mobilenet_v3_small"


@pytest.mark.parametrize("name", [NAME, "timm:resnet10t"])
def test_weights_that_cannot_be_downloaded_are_one_line(data, monkeypatch, name):
    def offline(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr(sys.modules[f"{import_torchvision().models.__name__}._api"], "load_state_dict_from_url", offline)
    monkeypatch.setattr(importlib.import_module("timm.models._builder"), "load_pretrained", offline)
    with pytest.raises(ScapError, match=f"those of architecture {name} cannot be downloaded .*no network.*give a file"):
        weights_of(data, name, "DEFAULT")


def test_weights_as_they_are_keep_their_head(data, monkeypatch):
    """Of a package that trained other classes, where no training would fit a fresh head."""
    trained = build_network(NAME).state_dict()
    api = sys.modules[f"{import_torchvision().models.__name__}._api"]
    monkeypatch.setattr(api, "load_state_dict_from_url", lambda *arguments, **options: trained)
    with pytest.raises(ScapError, match=r"gives \(1, 1000\) for one image; the 3 classes"):
        weights_of(data, NAME, "DEFAULT", fresh_head=False)
    found = weights_of(data, NAME, "DEFAULT")
    assert found["classifier.3.weight"].shape[0] == 3
    assert torch.equal(found["features.0.0.weight"], trained["features.0.0.weight"])
