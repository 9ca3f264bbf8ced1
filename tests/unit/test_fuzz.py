"""Whatever is done to a score table or an artifact: it still works, or one ScapError line says what is wrong with it.

pytest tests/unit/test_fuzz.py -s    prints how many cases were accepted and refused; FUZZ_CASES=2000 tries more
"""

import contextlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scap.criterion.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from scap.criterion.spectra import open_activations, open_spectra, write_spectra
from scap.data.datasets import load_dataset
from scap.errors import ScapError
from scap.pruning.files import load_network, save_network
from scap.pruning.plans import plan_at, plan_of_widths
from scap.reading import read_history
from scap.tensors import TensorFile, save_tensors
from scap.training.progress import load_progress, save_progress
from workflow import pointers
from workflow.records import restore_records

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow/scripts"))
from channels import read_fidelity, read_scores
from metrics import read_metrics

COUNTS: Counter[str] = Counter()
CASES = int(os.environ.get("FUZZ_CASES", "30"))  # of each kind
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "batches": torch.tensor(7)}
HISTORY = [{"epoch": 1, "loss": 0.5}]
RUN = {"network": "tiny", "seed": 0}
SCORES = pd.DataFrame({"layer": ["a", "a", "a", "b", "b"], "channel": [0, 1, 2, 0, 1], "score": [0.1, 0.9, 0.5, 0.0, 1.0]})


@pytest.fixture(scope="module", autouse=True)
def counted():
    yield
    print(f"\nfuzz: {COUNTS.total()} cases, {dict(COUNTS)}, tracebacks 0")
    assert COUNTS["refused"] > 0


def attempt(act: Callable[[], object]) -> bool:
    """Whether it works; it fails with one line, or the test does."""
    try:
        act()
        message = None
    except ScapError as error:
        message = str(error)
    COUNTS["accepted" if message is None else "refused"] += 1
    assert message is None or (0 < len(message) < 2000 and "\n" not in message)
    return message is None


# Score tables

CELLS = st.one_of(
    *(st.floats(), st.integers(), st.text(max_size=3), st.booleans(), st.none()),
    st.sampled_from([0.5, 1, 0, "a", "b", "0.5", 1e400]),
)
CHANGES = st.one_of(
    st.tuples(st.just("cell"), st.integers(0, 4), st.sampled_from(["layer", "channel", "score"]), CELLS),
    st.tuples(st.just("drop"), st.integers(0, 4)),
    st.tuples(st.just("double"), st.integers(0, 4)),
    st.tuples(st.just("order"), st.permutations(range(5))),
    st.tuples(st.just("column"), st.sampled_from(["layer", "channel", "score"])),
)


def change(table, what, *details):
    if what == "order":
        return table.iloc[[row for row in details[0] if row < len(table)]]
    if what == "column":
        return table.drop(columns=details[0], errors="ignore")
    if not len(table):
        return table
    row = details[0] % len(table)
    if what == "drop":
        return table.drop(index=table.index[row])
    if what == "double":
        return pd.concat([table, table.iloc[[row]]], ignore_index=True)
    table = table.astype(object).reset_index(drop=True)
    table.loc[row, details[1]] = details[2]
    return table


NUMBERS = st.one_of(st.floats(-0.5, 1.5), st.floats(), st.integers(-1, 3), st.none(), st.text(max_size=2), st.booleans())


@settings(max_examples=2 * CASES)
@given(st.lists(CHANGES, max_size=3), st.one_of(st.just(0.5), NUMBERS), st.one_of(st.just(1), NUMBERS), st.booleans())
def test_a_score_table_gives_a_plan_of_all_its_channels_or_one_line(changes, threshold, multiple, known):
    table = SCORES
    for each in changes:
        table = change(table, *each)
    channels = {"a": 3, "b": 2} if known else None
    plans = []
    if attempt(lambda: plans.append(plan_at(table, threshold, multiple, channels=channels))):
        (plan,) = plans
        assert not known or plan.keys() == channels.keys()
        for layer, kept in plan.items():
            rows = table[table["layer"].astype(str) == layer]
            assert sorted(map(float, rows["channel"])) == list(range(len(rows)))
            scores = dict(zip(map(int, rows["channel"]), map(float, rows["score"]), strict=True))
            left = [scores[channel] for channel in scores if channel not in kept]
            assert kept
            assert all(value < threshold and value <= min(scores[channel] for channel in kept) for value in left)
    attempt(lambda: plan_of_widths(table, {"a": multiple, "b": 1}, channels=channels))


# Artifacts


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2))


def make_data(path):
    parts = {"images": torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2), "labels": torch.tensor([0, 1, 0, 1])}
    save_tensors(path, {f"{part}_{kind}": values for part in ("train", "test") for kind, values in parts.items()})


def make_activations(path):
    with TensorFile(path, {"a.inputs": (2, 1, 2, 2), "a.outputs": (2, 2, 2, 2)}, torch.float16) as file:
        file.append("a.inputs", torch.ones(2, 1, 2, 2))
        file.append("a.outputs", torch.ones(2, 2, 2, 2))


def make_spectra(path):
    make_activations(path.with_name("a"))
    write_spectra(path.with_name("a"), "a", path)


def make_metrics(path):
    measured = {"top1": 50.0, "holdout_top1": 40.0, "macs": 10, "params": 5}
    path.write_text(json.dumps({"run": {"network": "tiny", "seed": "0"}, "baseline": measured, "device": "CPU", "torch": "2"}))


def read_progress(path):
    """Never an error: from scratch, with the tensors untouched, or all that was saved."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    history = load_progress(path, tensors, "me")
    assert history in ([], HISTORY)
    expected = STATE if history else {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    assert all(torch.equal(tensors[name], expected[name]) for name in STATE)
    if not history:
        raise ScapError("from scratch")


def read_records(path):
    path.with_name("x.provenance.json").write_bytes(path.read_bytes())
    with contextlib.chdir(path.parent), contextlib.redirect_stderr(io.StringIO()):  # warnings
        if restore_records(Path()):
            raise ScapError("skipped")


def read_network(path):
    loaded = load_network(path, network).state_dict()
    assert {name: values.shape for name, values in loaded.items()} == {
        name: values.shape for name, values in network().state_dict().items()
    }


def pointer(path):
    path.write_text(yaml.safe_dump({"outs": [{"path": "a", "md5": "0" * 32, "size": 3, "hash": "md5"}]}))


def read_pointer(path):
    for place, name in pointers.outs(path):
        assert place.resolve().is_relative_to(path.parent.resolve())
        assert set(name.removesuffix(".dir")) <= set("0123456789abcdef")


def listing(path):
    path.write_text(json.dumps([{"relpath": "a/b", "md5": "0" * 32}, {"relpath": "c", "md5": "1" * 32}]))


def read_listing(path):
    for place, _ in pointers.listed_files(path, path.parent / "d", path.read_bytes()):
        assert place.resolve().is_relative_to((path.parent / "d").resolve())


ARTIFACTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "data set": (make_data, lambda path: load_dataset(path, 1)),
    "network": (lambda path: save_network(path, network()), read_network),
    "activations": (make_activations, lambda path: open_activations(path, "a")),
    "spectra": (make_spectra, lambda path: open_spectra(path, "a")),
    "autoencoder": (
        lambda path: save_autoencoder(path, Autoencoder(torch.ones(3, 2, 4), torch.ones(1), "tanh"), "a"),
        lambda path: load_autoencoder(path, "a", "complex"),
    ),
    "progress": (lambda path: save_progress(path, STATE, HISTORY, "me"), read_progress),
    "scores": (lambda path: SCORES.to_csv(path, index=False), lambda path: plan_at(read_scores(path), 0.5)),
    "fidelity": (
        lambda path: pd.DataFrame({"layer": "a", "channel": range(3), "fidelity": [0.1, 0.5, 1]}).to_csv(path, index=False),
        lambda path: read_fidelity(path, "a"),
    ),
    "history": (
        lambda path: pd.DataFrame(
            {"epoch": [1, 2], "loss": [1.5, 1.0], "train_top1": [50, 60.0], "holdout_top1": [np.nan, np.nan], "seconds": [1, 1]}
        ).to_csv(path, index=False),
        lambda path: read_history(path, "seconds"),
    ),
    "metrics": (make_metrics, lambda path: read_metrics(path, RUN, ("baseline",))),
    "provenance": (lambda path: path.write_text('{"output": "x", "snakemake": {"endtime": 5}}'), read_records),
    "pointer": (pointer, read_pointer),
    "list of files": (listing, read_listing),
}
CHECKED = ("data set", "network", "autoencoder", "progress")  # a checksum protects every bit of them
TEXTS = [*b'nan inf -1 1e400 x 250 null {} [] \xff \x00 , .. / " F16'.split(b" "), b"", b"\n"]
DAMAGES = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("leave out"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("double"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("insert"), st.floats(0, 1), st.sampled_from(TEXTS)),
    st.tuples(st.just("replace"), st.floats(0, 1), st.sampled_from(TEXTS)),
    st.tuples(st.just("swap"), st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.just("other"), st.sampled_from(sorted(ARTIFACTS))),
    st.tuples(st.just("bytes"), st.binary(max_size=40)),
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    made = {}
    for name, (make, read) in ARTIFACTS.items():
        (folder / name).mkdir()
        make(folder / name / "x")
        made[name] = (folder / name / "x").read_bytes()
        read(folder / name / "x")
    return made


def damaged(content: bytes, originals: dict[str, bytes], what: str, *details) -> bytes:
    if what in ("other", "bytes"):
        return originals[details[0]] if what == "other" else details[0]
    at = int(details[0] * (len(content) - 1)) if content else 0
    if what == "flip":
        return content[:at] + bytes([content[at] ^ details[1]]) + content[at + 1 :] if content else content
    if what == "cut":
        return content[:at]
    if what in ("insert", "replace"):
        return content[:at] + details[1] + content[at + (len(details[1]) if what == "replace" else 0) :]
    start, end = sorted((at, int(details[1] * len(content))))
    if what == "swap":
        lines = content.splitlines(keepends=True) or [b""]
        first, second = (int(detail * (len(lines) - 1)) for detail in details)
        lines[first], lines[second] = lines[second], lines[first]
        return b"".join(lines)
    return content[:start] + (content[start:end] * 2 if what == "double" else b"") + content[end:]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_damaged_artifact_is_read_or_refused_with_one_line(name, originals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")

    @settings(max_examples=CASES)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        content = originals[name]
        for each in damages:
            content = damaged(content, originals, *each)
        (folder / "x").write_bytes(content)
        accepted = attempt(lambda: ARTIFACTS[name][1](folder / "x"))
        assert not accepted or name not in CHECKED or content == originals[name]

    check()
