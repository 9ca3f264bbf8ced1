"""The examples of the documentation run, on tiny data."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scap.data.datasets import load_dataset, normalise, read_source
from scap.data.sources import survey_folder
from scap.models.build import build_network
from scap.tensors import save_tensors

ROOT = Path(__file__).parents[2]
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


def test_a_data_set_is_written_as_a_folder(images, tmp_path):
    """From the command line, as the recipe says."""
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "folder"), str(images), "--classes", "2", "--count", "3"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = survey_folder(tmp_path / "folder")
    assert (found.train, found.test) == (6, 6)
    save_tensors(tmp_path / "list", read_source("folder", tmp_path / "folder", size=32, resize=32))
    written, stored = load_dataset(tmp_path / "list", 0).test, load_dataset(images, 0).test
    for index, label in enumerate(written.labels):
        chosen = (stored.labels == label).nonzero()[index % 3]
        assert torch.equal(written.take(torch.tensor([index])), stored.take(chosen))


def test_efficientnet_lite0_is_built_without_its_weights_where_a_file_has_them():
    with torch.device("meta"):
        network = build_network(f"{EXAMPLE}:efficientnet_lite0", classes=3)
    assert all(value.is_meta for value in network.state_dict().values())


def test_efficientnet_lite0_knows_the_classes_of_imagenet(tmp_path):
    """On scikit-learn's two photographs: a palace (class 698) and a flower, nearest a daisy (985)."""
    from sklearn.datasets import load_sample_images  # here, as every process of pytest-xdist imports this file

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


def test_unet_learns_to_tell_digits_apart_and_keeps_it_when_pruned(tmp_path):
    """Without learning, all is background: a third of the classes."""
    spec = importlib.util.spec_from_file_location("unet_digits", ROOT / "docs" / "examples" / "unet_digits.py")
    unet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unet)
    file = tmp_path / "unet.safetensors"
    tiny = ("--count", "192", "--width", "4", "--epochs", "10", "--share", "0.6", "--file", str(file))
    rows = {row.pop("step"): row for row in unet.main([*tiny])}
    assert list(rows) == ["trained", "pruned", "fine-tuned", "loaded"]
    assert rows["trained"]["overlap"] > 36
    assert rows["pruned"]["overlap"] > rows["trained"]["overlap"] - 5
    assert rows["fine-tuned"]["overlap"] > rows["trained"]["overlap"] - 3
    assert rows["loaded"] == rows["fine-tuned"]
    assert 0.5 * rows["trained"]["macs"] < rows["pruned"]["macs"] <= 0.6 * rows["trained"]["macs"]


def test_canvases_for_testing_hold_other_digits():
    """And the labels are strokes: bright, and of a class for each half of the digits."""
    spec = importlib.util.spec_from_file_location("unet_digits", ROOT / "docs" / "examples" / "unet_digits.py")
    unet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unet)
    images, labels = unet.canvases(8, 0, training=True)
    assert not torch.equal(unet.canvases(8, 0, training=False)[0], images)
    assert (images[:, 0][labels > 0] >= 0).all()
    assert (images[:, 0][labels == 0] < 0).all()
    assert labels.unique().tolist() == [0, 1, 2]
