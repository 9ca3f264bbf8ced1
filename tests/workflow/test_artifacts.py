"""Jobs check what they read: schema, ranges, and whose it is. Each refusal is one line that says what makes it again."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from scap.errors import DamagedFile, ScapError
from scap.models.build import build_network
from scap.pruning.files import read_metadata, save_network
from scap.pruning.surgery import cut_network
from scap.tensors import save_tensors
from scap.training.loop import round_kernels

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow/scripts"))
import evaluate
import job
import plans
import runs_table
import scores
from channels import read_fidelity, read_scores
from networks import open_pruned, open_unpruned

CFG = {"architecture": {"architecture": "vgg16", "width": 0.0625, "holdout": 4}}
ARGUMENTS = {"classes": 3, "in_channels": 1, "width": 0.0625}
SHAPE = (1, 1, 32, 32)
LAYERS = ["conv1_1", "conv2_2"]
PLAN = {"conv1_1": [0, 2], "conv2_2": [1, 3, 5]}
RUN = {
    **{"network": "tiny", "seed": 0, "criterion": "l1", "widths": "own", "size": "threshold-0.5"},
    **{"compensation": "none", "schedule": "short"},
}


def save(path, network, plan=None, arguments=ARGUMENTS):
    save_network(path, network, architecture="vgg16", arguments=arguments, plan=plan, example_shape=SHAPE)


@pytest.fixture
def folder(tmp_path):
    """A baseline, a pruned network, the images."""
    network = build_network("vgg16", **ARGUMENTS)
    save(tmp_path / "baseline", network)
    save(tmp_path / "pruned", cut_network(network, PLAN, torch.zeros(SHAPE)), PLAN)
    images, labels = torch.randint(0, 256, (12, 1, 32, 32), dtype=torch.uint8), torch.arange(12) % 3
    save_tensors(
        tmp_path / "data", {f"{p}_{k}": v for p in ("train", "test") for k, v in (("images", images), ("labels", labels))}
    )
    return tmp_path


def rewrite(path, change):
    """The same file with other weights, whole."""
    weights = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    metadata = {"scap-network-1": json.dumps(read_metadata(path))}
    save_tensors(path, weights, metadata)


def measure(folder, **models):
    paths = {name: str(folder / file) for name, file in models.items()}
    evaluate.measure(paths, str(folder / "data"), CFG, {"network": "tiny"}, str(folder / "metrics.json"), "cpu")
    return json.loads((folder / "metrics.json").read_text())


def test_what_is_right_is_measured(folder):
    assert measure(folder, baseline="baseline")["baseline"]["macs"] > 0
    metrics = measure(folder, pruned="pruned", finetuned="pruned")
    assert metrics["pruned"] == metrics["finetuned"]
    assert metrics["run"] == {"network": "tiny"}


def test_a_baseline_in_the_place_of_a_pruned_network_is_refused(folder):
    with pytest.raises(DamagedFile, match="baseline: is an unpruned network, where a pruned one belongs"):
        measure(folder, pruned="baseline", finetuned="pruned")
    with pytest.raises(DamagedFile, match="pruned: is a pruned network, where an unpruned one belongs"):
        measure(folder, baseline="pruned")


def test_a_network_that_keeps_other_channels_is_refused(folder):
    other = {"conv1_1": [0, 3], "conv2_2": [1, 3, 5]}
    network = build_network("vgg16", **ARGUMENTS)
    save(folder / "other", cut_network(network, other, torch.zeros(SHAPE)), other)
    with pytest.raises(DamagedFile, match=r"other: keeps other channels than .*pruned, from which it was trained"):
        measure(folder, pruned="pruned", finetuned="other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: tensor.half() if tensor.is_floating_point() else tensor, "torch.float16, not torch.float32"),
        (lambda name, tensor: tensor * torch.nan if name == "conv2_1.weight" else tensor, "'conv2_1.weight' holds NaN"),
        (lambda name, tensor: tensor[:1] if name == "conv2_1.bias" else tensor, "do not fit"),
    ],
)
def test_weights_that_are_no_float32_numbers_are_refused(folder, change, message):
    rewrite(folder / "baseline", change)
    with pytest.raises(ScapError, match=f"baseline: .*{message}"):
        open_unpruned(str(folder / "baseline"), CFG["architecture"])


def test_a_network_of_another_width_or_architecture_is_refused(folder):
    wider = ARGUMENTS | {"width": 0.125}
    save(folder / "baseline", build_network("vgg16", **wider), arguments=wider)
    with pytest.raises(DamagedFile, match=r"baseline: is of width 0\.125, not of 0\.0625"):
        open_unpruned(str(folder / "baseline"), CFG["architecture"])
    with pytest.raises(DamagedFile, match="pruned: is of architecture vgg16, not of resnet20"):
        open_pruned(str(folder / "pruned"), CFG["architecture"] | {"architecture": "resnet20"})


OWN = """
from torch import nn

def network(classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

other = network
"""


def test_code_is_run_for_the_function_that_the_configuration_names_alone(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    name, arguments = f"{tmp_path}/own.py:network", {"classes": 3, "in_channels": 1}
    network = build_network(name, **arguments)
    save_network(tmp_path / "own", network, architecture=name, arguments=arguments, example_shape=SHAPE)
    opened, _ = open_unpruned(str(tmp_path / "own"), {"architecture": name})
    assert torch.equal(opened[0].weight, network[0].weight)
    with pytest.raises(ScapError, match="is not run unasked"):
        open_unpruned(str(tmp_path / "own"), {"architecture": f"{tmp_path}/own.py:other"})


def test_a_network_of_other_classes_is_refused(folder):
    more = ARGUMENTS | {"classes": 10}
    save(folder / "baseline", build_network("vgg16", **more), arguments=more)
    with pytest.raises(DamagedFile, match=r"baseline: is for images .* of 10 classes, not .* of 3 classes"):
        measure(folder, baseline="baseline")


def score_file(folder, change=lambda table: table):
    rows = [(layer, channel, channel / 10) for layer, count in (("conv1_1", 4), ("conv2_2", 8)) for channel in range(count)]
    change(pd.DataFrame(rows, columns=["layer", "channel", "score"])).to_csv(folder / "scores.csv", index=False)
    return read_scores(str(folder / "scores.csv"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:-1], "layer conv2_2 has 7 channels, but the network's has 8"),
        (lambda table: table[:4], "layer conv2_2 is missing"),
        (lambda table: table.replace("conv2_2", "conv2_1"), "layer conv2_2 is missing"),
        (lambda table: pd.concat([table, table]), r"scores\.csv: layer conv1_1: channel 0 is there twice"),
        (lambda table: table.drop(columns="channel"), r"scores\.csv: column 'channel' is missing"),
        (lambda table: table[:0], r"scores\.csv: the table has no rows"),
        (lambda table: table.assign(score=table["score"] * 100), r"scores\.csv: layer conv1_1, channel 1: score is 10"),
    ],
)
@pytest.mark.parametrize("uniform", [False, True])
def test_scores_of_another_network_make_no_plan(folder, change, message, uniform):
    network, _ = open_unpruned(str(folder / "baseline"), CFG["architecture"])
    cfg = {"layers": LAYERS, "uniform": uniform, "threshold": 0.2, "multiple": 1, "min_channels": 1}
    assert plans.make_plan(network, torch.zeros(SHAPE), score_file(folder), None, cfg)
    with pytest.raises(ScapError, match=message):
        plans.make_plan(network, torch.zeros(SHAPE), score_file(folder, change), None, cfg)


def test_the_table_that_gives_the_widths_is_checked_too(folder):
    network, _ = open_unpruned(str(folder / "baseline"), CFG["architecture"])
    cfg = {"layers": LAYERS, "uniform": False, "threshold": 0.2, "multiple": 1, "min_channels": 1}
    with pytest.raises(ScapError, match="layer conv2_2 has 7 channels"):
        plans.make_plan(network, torch.zeros(SHAPE), score_file(folder), score_file(folder, lambda table: table[:-1]), cfg)


def fidelity(path, layer="conv1_1", values=(0.1, 0.5, 0.9, 1.0)):
    pd.DataFrame({"layer": layer, "channel": range(len(values)), "fidelity": values}).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize(
    ("values", "layer", "message"),
    [
        ((0.1, 0.5), "conv2_2", "x: is of layer conv2_2, not of conv1_1"),
        ((0.1, 1.5), "conv1_1", "x: layer conv1_1, channel 1: fidelity is 1.5, not a number between -1 and 1"),
        ((0.1, None), "conv1_1", "x: column 'fidelity', row 2 is not a number"),
    ],
)
def test_fidelities_are_of_their_layer(tmp_path, values, layer, message):
    with pytest.raises(DamagedFile, match=message):
        read_fidelity(fidelity(tmp_path / "x", layer, values), "conv1_1")


def test_scores_read_a_baseline_stored_in_half_precision(folder):
    network = build_network("vgg16", **ARGUMENTS)
    round_kernels(network)
    save(folder / "rounded", network)
    with safe_open(folder / "rounded", "numpy") as file:
        assert file.get_slice("conv1_1.weight").get_dtype() == "F16"
    cfg = {"layers": LAYERS, "criterion": {"terms": {"l1": 1}, "normalise": {"l1": "max"}}}
    scores.make_scores(str(folder / "rounded"), [], [], cfg, 0, str(folder / "s"))
    table = read_scores(str(folder / "s"))
    for layer in LAYERS:
        norms = network.get_submodule(layer).weight.detach().double().abs().sum((1, 2, 3))
        assert table.loc[table["layer"] == layer, "score"].tolist() == pytest.approx((norms / norms.max()).tolist(), rel=1e-9)


def test_scores_need_every_term_for_every_channel(folder):
    cfg = {"layers": ["conv1_1"], "criterion": {"terms": {"fidelity": 1, "rms": 1}}}
    pd.DataFrame({"layer": "conv1_1", "channel": range(4), "rms": 1.0}).to_csv(folder / "rms.csv", index=False)
    make = (str(folder / "baseline"), [str(folder / "rms.csv")])
    scores.make_scores(*make, [fidelity(folder / "f")], cfg, 0, str(folder / "s"))
    with pytest.raises(ScapError, match="layer conv1_1: the terms fidelity, rms have values for different numbers of channels"):
        scores.make_scores(*make, [fidelity(folder / "f", values=(0.1, 0.2))], cfg, 0, str(folder / "s"))
    with pytest.raises(DamagedFile, match=r"rms\.csv: layer conv2_2 is missing"):
        scores.make_scores(*make, [fidelity(folder / "f")], cfg | {"layers": LAYERS}, 0, str(folder / "s"))


@pytest.fixture
def run_files(tmp_path):
    """The metrics of a baseline and a run, and its history."""
    measured = {"top1": 50.0, "holdout_top1": 40.0, "macs": 100, "params": 50}
    made = {"device": "CPU", "torch": "2"}
    wildcards = {key: str(value) for key, value in RUN.items()}
    own = {key: wildcards[key] for key in ("network", "seed")}
    smaller = measured | {"macs": 60, "params": 20}
    files = {
        "metrics.json": {"run": wildcards, "pruned": smaller, "finetuned": smaller, **made},
        "baseline.json": {"run": own, "baseline": measured, **made},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    rows = [{"epoch": epoch, "loss": 1.0, "train_top1": 50, "holdout_top1": 40, "seconds": 1} for epoch in (1, 2)]
    pd.DataFrame(rows).to_csv(tmp_path / "history.csv", index=False)
    return tmp_path


def read_row(folder):
    return runs_table.row(RUN, *(str(folder / name) for name in ("metrics.json", "baseline.json", "history.csv")))


def test_a_row_of_what_is_right(run_files):
    row = read_row(run_files)
    assert (row["top1"], row["macs_removed"], row["finetune_epochs"]) == (50.0, 0.4, 2)
    assert (row["device"], row["torch"]) == ("CPU", "2")


def test_a_row_of_a_checkpoint_that_was_not_trained_here(run_files):
    baseline, metrics = run_files / "baseline.json", run_files / "metrics.json"
    for path in (baseline, metrics):
        found = json.loads(path.read_text())
        path.write_text(json.dumps({key: found[key] for key in found if key not in ("device", "torch")}))
    row = runs_table.row(RUN, str(metrics), str(baseline), None)
    assert row["device"] == row["torch"] == "trained elsewhere"


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("metrics.json", "finetuned.top1", 250, "'finetuned.top1' is 250, not a number between 0 and 100"),
        ("metrics.json", "finetuned.top1", "high", "'finetuned.top1' is 'high'"),
        ("metrics.json", "pruned.top1", -1, "'pruned.top1' is -1"),
        ("metrics.json", "pruned.top1", None, "'pruned.top1' is None"),
        ("metrics.json", "pruned.top1", True, "'pruned.top1' is True"),
        ("metrics.json", "pruned.holdout_top1", float("nan"), "'pruned.holdout_top1' is nan"),
        ("metrics.json", "finetuned.macs", 60.5, "'finetuned.macs' is 60.5, not a whole number"),
        ("metrics.json", "finetuned.macs", 70, "macs are 100 of the baseline, 60 pruned and 70 in the end"),
        ("metrics.json", "finetuned", [], "'finetuned.macs' is missing"),
        ("metrics.json", "run.criterion", "scap", "is of the run .*'criterion': 'scap'.*, not of .*'criterion': 'l1'"),
        ("metrics.json", "run.seed", "1", "is of the run"),
        ("metrics.json", "run", None, "is of the run None"),
        ("metrics.json", "device", 5, "'device' is 5, not text"),
        ("baseline.json", "baseline.macs", 50, "macs are 50 of the baseline, 60 pruned"),
        ("baseline.json", "run.network", "wide", "is of the run"),
    ],
)
def test_metrics_out_of_range_or_of_another_run_reach_no_table(run_files, name, key, value, message):
    content = json.loads((run_files / name).read_text())
    *above, last = key.split(".")
    part = content
    for each in above:
        part = part[each]
    part[last] = value
    (run_files / name).write_text(json.dumps(content))
    with pytest.raises(DamagedFile, match=rf"\.json: .*{message}.*; make it again"):
        read_row(run_files)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
@pytest.mark.parametrize("name", ["metrics.json", "baseline.json"])
def test_what_is_no_json_is_one_line(run_files, name, content):
    (run_files / name).write_bytes(content)
    with pytest.raises(DamagedFile, match=rf"{name}: (not readable as JSON|is no JSON object).*; make it again"):
        read_row(run_files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: pd.concat([table, table]), "its epochs are not 1, 2, … once each"),
        (lambda table: table[1:], "its epochs are not 1, 2, … once each"),
        (lambda table: table[::-1], "its epochs are not 1, 2, … once each"),
        (lambda table: table[:0], "the table has no rows"),
        (lambda table: table.drop(columns="seconds"), "column 'seconds' is missing"),
        (lambda table: table.assign(train_top1=101), "column 'train_top1', row 1 is not between 0 and 100"),
        (lambda table: table.assign(epoch=[1, 1.5]), "column 'epoch', row 2 is not a whole number"),
        (lambda table: table.assign(seconds=[1, "long"]), "column 'seconds', row 2 is not a number"),
        (lambda table: table.assign(seconds=[1, float("inf")]), "column 'seconds', row 2 is not between"),
    ],
)
def test_histories_doubled_or_damaged_reach_no_table(run_files, change, message):
    path = run_files / "history.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(DamagedFile, match=rf"history\.csv: {message}.*; make it again"):
        read_row(run_files)


@pytest.mark.parametrize(
    "text", ["", "\0", "epoch\n1,2\n", "\xff", "epoch,epoch,loss,train_top1,holdout_top1,seconds\n1,1,1,1,1,1\n"]
)
def test_what_is_no_table_is_one_line(run_files, text):
    (run_files / "history.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFile, match=r"history\.csv: .*; make it again") as raised:
        read_row(run_files)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("path", "hint"), [("results/tiny/scores.csv", True), ("data/batch", False)])
def test_a_job_says_which_command_makes_a_damaged_file_again(tmp_path, monkeypatch, path, hint):
    monkeypatch.chdir(tmp_path)
    logger, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    given = SimpleNamespace(rule="scores", wildcards=[], params={}, log=[str(tmp_path / "log")])
    try:
        with pytest.raises(SystemExit), job.job(given):
            raise DamagedFile(path, "is damaged")
    finally:
        logger.handlers[:] = handlers
    (line,) = (tmp_path / "log").read_text().splitlines()
    command = f": snakemake --cores all --force {path}" if hint else ""
    assert line.endswith(f"error: {path}: is damaged; make it again{command}")
