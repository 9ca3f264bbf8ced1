"""A fine-tuning of the workflow in several processes, as a network's `gpu` asks for."""

import logging
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning.files import read_metadata, save_network
from scap.pruning.surgery import cut_network
from scap.tensors import save_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow/scripts"))
import several
from finetune import finetune

TRAINING = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "crop": 2, "start": "pruned"}
CFG = {"architecture": {"architecture": "vgg16", "width": 0.0625, "holdout": 4}, "training": TRAINING}


@pytest.fixture
def task(tmp_path):
    """What the job of a tiny network is given; where it writes, by a name."""
    network, shape = build_network("vgg16", classes=3, in_channels=1, width=0.0625), (1, 1, 32, 32)
    pruned, arguments = cut_network(network, {"conv1_1": [0, 2]}, torch.zeros(shape)), {"classes": 3, "in_channels": 1}
    arguments["width"] = 0.0625
    save_network(tmp_path / "pruned", pruned, architecture="vgg16", arguments=arguments, example_shape=shape)
    pixels, labels = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8), torch.arange(12) % 3
    parts = {"train_images": pixels, "train_labels": labels, "test_images": pixels, "test_labels": labels}
    save_tensors(tmp_path / "data", parts)
    inputs = {"pruned": str(tmp_path / "pruned"), "data": str(tmp_path / "data"), "teacher": [], "earlier": []}

    def made(name, **changes):
        outputs = {"model": str(tmp_path / name), "history": str(tmp_path / f"{name}.csv")}
        return {**inputs, **outputs, "cfg": CFG, "seed": 0, "version": ""} | changes

    return made


def test_two_processes_leave_what_one_does(task, tmp_path, monkeypatch):
    monkeypatch.setenv("SCAP_QUIET_JOBS", "1")
    several.start(2, task("two"), str(tmp_path / "log"), "finetune tiny", threads=2)
    finetune(**task("one", earlier=[str(tmp_path / "two.csv")]), device="cpu", report=lambda row: None)
    one, two = (load_file(tmp_path / name) for name in ("one", "two"))
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-3, atol=1e-5)
    metadata = [read_metadata(tmp_path / name) for name in ("two", "one")]
    assert metadata[0]["extra"]["device"] == f"2 x {metadata[1]['extra']['device']}"
    assert metadata[0]["plan"] == metadata[1]["plan"] == {"conv1_1": [0, 2]}
    both = pd.read_csv(tmp_path / "one.csv")  # the epochs of an earlier round come first
    assert both["epoch"].tolist() == [1, 2]
    assert both["loss"][1] == pytest.approx(both["loss"][0], rel=1e-4)


@pytest.mark.parametrize(("returncode", "error"), [(1, RuntimeError), (0, None)])
def test_a_process_that_fails_without_a_word_is_told(task, tmp_path, monkeypatch, returncode, error):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=returncode, stderr="killed"))
    with pytest.raises(error, match="one of 2 processes failed:\nkilled") if error else nullcontext():
        several.start(2, task("two"), str(tmp_path / "log"), "finetune tiny", threads=2)


def test_what_a_process_refuses_is_one_line_of_the_job(task, tmp_path, monkeypatch):
    """Here: a GPU fewer than processes."""

    def run(command, **options):
        with pytest.raises(SystemExit):
            several.run_task(command[-1])
        return SimpleNamespace(returncode=1, stderr="a page of torchrun's")

    handlers = logging.getLogger().handlers[:]
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(ScapError, match=r"^gpu: 2 GPUs are asked for, but there are 1 here; lower it, or run"):
            several.start(2, task("two"), str(tmp_path / "log"), "finetune tiny", threads=2 * torch.get_num_threads())
    finally:
        logging.getLogger().handlers[:] = handlers


@pytest.mark.parametrize(("found", "device"), [(0, "cpu"), (2, "cuda:1"), (4, "cuda:1")])
def test_each_process_has_a_gpu_of_its_own_or_all_the_cpu(monkeypatch, found, device):
    threads, chosen = torch.get_num_threads(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with torch.backends.cudnn.flags(enabled=True):
        assert several.own_device(1, 2, 1) == device
    torch.set_num_threads(threads)
    assert chosen == ([1] if found else [])


def test_only_the_first_process_adds_to_the_log(tmp_path, monkeypatch):
    logger, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    monkeypatch.setenv("SCAP_QUIET_JOBS", "1")
    (tmp_path / "log").write_text("before\n")
    try:
        for rank in (1, 0):
            several._log_to(str(tmp_path / "log"), "finetune tiny", rank)
            several.LOG.info("from %d", rank)
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    assert (tmp_path / "log").read_text() == "before\n[finetune tiny] from 0\n"
