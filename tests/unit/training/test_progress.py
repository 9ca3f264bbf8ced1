"""Saved progress comes back bit by bit, and only to the run that it belongs to."""

import logging
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from scap.tensors import save_tensors
from scap.training.progress import fingerprint, load_progress, save_progress


@pytest.fixture
def tensors():
    return {"weight": torch.randn(3, 4, 2, 2), "batches": torch.tensor(7), "half": torch.ones(2).bfloat16()}


def zeros_like(tensors):
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def test_tensors_and_history_come_back_exactly(tmp_path, tensors):
    history = [{"epoch": 1, "loss": 0.1 + 0.2, "holdout_top1": math.nan}]
    save_progress(tmp_path / "p", tensors, history, "me")
    restored = zeros_like(tensors)
    (row,) = load_progress(tmp_path / "p", restored, "me")
    assert row["loss"] == history[0]["loss"]
    assert math.isnan(row["holdout_top1"])
    assert all(torch.equal(restored[name], tensors[name]) for name in tensors)


def test_tensors_are_filled_in_place_and_keep_their_memory_format(tmp_path, tensors):
    save_progress(tmp_path / "p", tensors, [], "me")
    weight = torch.zeros(3, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    load_progress(tmp_path / "p", zeros_like(tensors) | {"weight": weight}, "me")
    assert torch.equal(weight, tensors["weight"])
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_there_is_no_history_without_a_file(tmp_path, tensors):
    assert load_progress(tmp_path / "p", tensors, "me") == []


@pytest.mark.parametrize(("damage", "warning"), [("cut", "damaged"), ("text", "damaged"), ("other", "seed")])
def test_a_damaged_or_foreign_file_is_reported_and_ignored(tmp_path, tensors, caplog, damage, warning):
    path, untouched = tmp_path / "p", zeros_like(tensors)
    save_progress(path, tensors, [{"epoch": 1}], "another" if damage == "other" else "me")
    if damage != "other":
        path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"not a safetensors file")
    with caplog.at_level(logging.WARNING):
        assert load_progress(path, untouched, "me") == []
    assert warning in caplog.text
    assert str(path) in caplog.text
    assert not any(tensor.any() for tensor in untouched.values())


def not_resumed(path, tensors, caplog):
    """What the log says where nothing is resumed and nothing touched."""
    untouched = zeros_like(tensors)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert load_progress(path, untouched, "me") == []
    assert not any(tensor.any() for tensor in untouched.values())
    (record,) = caplog.records
    assert record.message.startswith(f"{path}: ")
    assert record.message.endswith("training from scratch")
    return record.message


def test_no_byte_of_the_file_may_differ(tmp_path, tensors, caplog):
    path = tmp_path / "p"
    save_progress(path, tensors, [{"epoch": 1, "loss": 0.5}], "me")
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :])
        not_resumed(path, tensors, caplog)
    path.write_bytes(content + b"more")
    not_resumed(path, tensors, caplog)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"weight": torch.ones(1)}, r"'weight' has shape \(1\), not \(3, 4, 2, 2\)"),
        ({"weight": torch.ones(3, 4, 2, 2).half()}, "'weight' is of type F16, not F32"),
        ({"weight": torch.full((3, 4, 2, 2), torch.nan)}, "'weight' holds NaN"),
        ({"batches": torch.ones(2).long()}, "'batches' has shape"),
        ({"weight": None}, "holds no 'weight'"),
    ],
)
def test_tensors_of_another_shape_or_type_are_not_broadcast(tmp_path, tensors, caplog, saved, message):
    """Even in a file that is whole."""
    content = {name: tensor for name, tensor in (tensors | saved).items() if tensor is not None}
    save_progress(tmp_path / "p", content, [{"epoch": 1}], "me")
    assert re.search(message, not_resumed(tmp_path / "p", tensors, caplog).replace(",)", ")"))


@pytest.mark.parametrize("history", ["", "[", "{}", "5"])
def test_a_history_that_is_none_is_not_believed(tmp_path, tensors, caplog, history):
    save_tensors(tmp_path / "p", tensors, {"fingerprint": "me", "history": history})
    not_resumed(tmp_path / "p", tensors, caplog)


def test_a_file_of_another_program_is_not_resumed(tmp_path, tensors, caplog):
    save_file(tensors, tmp_path / "p", {"fingerprint": "me", "history": "[]"})
    assert "no checksum" in not_resumed(tmp_path / "p", tensors, caplog)


def test_a_fingerprint_tells_facts_names_shapes_and_values_apart():
    zeros = torch.zeros(4)
    prints = {
        fingerprint(1, {"a": zeros}),
        fingerprint(2, {"a": zeros}),
        fingerprint(1, {"b": zeros}),
        fingerprint(1, {"a": zeros.reshape(2, 2)}),
        fingerprint(1, {"a": zeros + torch.tensor([0, 0, 0, 1e-30])}),
    }
    assert len(prints) == 5


def test_a_fingerprint_is_blind_to_the_memory_format():
    values = torch.randn(2, 3, 4, 4)
    moved = values.contiguous(memory_format=torch.channels_last)
    assert fingerprint(None, {"a": values}) == fingerprint(None, {"a": moved})
