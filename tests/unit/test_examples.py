"""The examples of the documentation run, on tiny data."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

import scap
from scap.data.datasets import load_dataset, normalise, read_source
from scap.errors import ScapError
from scap.models.build import build_network
from scap.tensors import save_tensors

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
EXAMPLE = ROOT / "docs" / "examples" / "efficientnet_lite0.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set of four reddish, greenish and bluish images each, in one file."""
    generator, tensors = np.random.default_rng(0), {}
    for part in ("train", "test"):
        labels = torch.arange(12) % 3
        pixels = torch.from_numpy(generator.integers(0, 120, (12, 3, 32, 32), dtype=np.uint8))
        pixels[torch.arange(12), labels] += 130
        tensors |= {f"{part}_images": pixels, f"{part}_labels": labels}
    path = tmp_path_factory.mktemp("images") / "images.safetensors"
    save_tensors(path, tensors)
    return path


def test_efficientnet_lite0_is_trained_pruned_and_fine_tuned_on_a_folder(images, tmp_path):
    """From the command line, as its first lines say."""
    tiny = ("--classes", "3", "--count", "3", "--size", "32", "--epochs", "1")
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "folder"), "--from", str(images), *tiny]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["trained", "pruned", "fine-tuned"]
    macs = [float(row[4]) for row in rows]
    assert macs[1] == macs[2] < 0.95 * macs[0]
    assert len(list((tmp_path / "folder" / "train" / "class2").glob("*.png"))) == 3
    assert Image.open(next((tmp_path / "folder" / "val" / "class0").glob("*.png"))).size == (32, 32)
    saved = tmp_path / "folder" / "pruned.safetensors"
    with pytest.raises(ScapError, match="give run_code=True"):
        scap.load_network(saved)
    pruned = scap.load_network(saved, run_code=True)
    assert scap.count_operations(pruned, torch.zeros(1, 3, 32, 32))["macs"] / 1e6 == pytest.approx(macs[1], abs=0.05)


def test_efficientnet_lite0_knows_the_classes_of_imagenet(tmp_path):
    """On scikit-learn's two photographs: a palace (class 698) and a flower, nearest a daisy (985)."""
    for part in ("train", "val"):
        for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / part / name / "photo.png")
    save_tensors(tmp_path / "list", read_source("folder", tmp_path))
    photos = load_dataset(tmp_path / "list", 0, normalisation={"mean": [127 / 255] * 3, "std": [128 / 255] * 3})
    network = build_network(f"{EXAMPLE}:efficientnet_lite0", classes=1000).eval()
    with torch.no_grad():
        logits = network(normalise(photos.test.take(torch.tensor([0, 1])), photos.mean, photos.std, "cpu"))
    assert logits.argmax(1).tolist() == [698, 985]


def recipe(title: str, **given) -> dict:
    """Run the Python of a recipe; the names that it leaves."""
    text = RECIPES.split(f"\n## {title}\n")[1].split("\n## ")[0]
    exec(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0], given)
    return given


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        x = self.stem(images).relu()
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


def test_layers_that_go_together_are_pruned():
    network, images = Residual().eval(), torch.randn(64, 3, 8, 8)
    smaller = recipe("Prune layers that go together", scap=scap, network=network, images=images)["smaller"]
    assert scap.count_operations(smaller, images)["macs"] <= 0.5 * scap.count_operations(network, images)["macs"]
    assert smaller.stem.out_channels == smaller.outer.out_channels < 16


def test_torch_pruning_takes_a_criterion():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    recipe("Score for Torch-Pruning", scap=scap, network=network, images=torch.randn(64, 3, 8, 8))
    widths = [network[0].out_channels, network[2].out_channels]
    assert 8 <= sum(widths) <= 16
    assert all(width % 4 == 0 for width in widths)
