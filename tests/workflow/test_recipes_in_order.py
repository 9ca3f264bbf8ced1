"""What docs/recipes.md tells to type runs as it stands, one recipe after the other."""

import re
from pathlib import Path

import pytest
import torch
from clock import time_by_macs
from torch import nn

import scap

RECIPES = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


def make_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def code(title):
    """The Python of a recipe."""
    section = RECIPES.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def names():
    """What the first recipe leaves."""
    network, images = make_network().eval(), torch.randn(96, 3, 12, 12)
    labels = (images.mean((1, 2, 3)) > 0).long()
    criterion = scap.CriterionSettings(terms={"l1": 1})
    table = scap.score_network(network, images, criterion=criterion)
    smaller = scap.prune_network(network, scap.plan_for(table, network, images[:1], macs=0.5), images)
    given = {"scap": scap, "torch": torch, "network": network, "images": images, "labels": labels}
    return given | {"criterion": criterion, "table": table, "smaller": smaller}


def test_a_budget(names, monkeypatch):
    time_by_macs(monkeypatch)
    exec(code("Meet a budget"), names)
    first, *_, last = names["layers"]
    assert names["plan"].reached["latency"] <= 0.7
    assert len(names["plan"][first]) >= 16
    assert all(len(kept) % 8 == 0 for kept in names["plan"].values())
    assert last not in names["plan"]


def test_fine_tuning_and_rounds(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code("Fine-tune with your own data, loss and measure"), names)
    assert set(names["history"][-1]) == {"epoch", "learning_rate", "loss", "top1", "seconds"}
    again = scap.load_network("smaller.safetensors", build=make_network)
    torch.testing.assert_close(again(names["images"]), names["smaller"](names["images"]))
    assert (
        scap.count_operations(again, names["images"][:1])["macs"]
        <= 0.5 * scap.count_operations(names["network"], names["images"][:1])["macs"]
    )


def test_export(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    time_by_macs(monkeypatch)
    exec(code("Export to ONNX, and measure latency"), names)
    assert names["difference"] < 1e-4
    assert 0 < names["measured"].ratio < 1
    assert (tmp_path / "smaller.onnx").stat().st_size > 1000
