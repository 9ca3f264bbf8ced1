"""Checkpoints of others: loaded whole or not at all, and every mistake answered by one line."""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scap.errors import ScapError
from scap.models.build import build_network
from scap.models.checkpoints import check_checkpoint, load_checkpoint

ROOT = Path(__file__).parents[3]


def network(seed=0, classes=10):
    torch.manual_seed(seed)
    return build_network("resnet20", width=0.25, classes=classes)


def weights(prefix="", seed=1, classes=10):
    """A state dict whose keys begin with `prefix`, as DataParallel makes them."""
    return network(seed, classes).state_dict(prefix=prefix)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "other.th"


def refused(path, message, **options):
    """That loading fails with one line that begins with the file's name, and leaves the network as it was."""
    mine = network()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    with pytest.raises(ScapError, match=message) as failure:
        load_checkpoint(mine, path, **options)
    assert str(failure.value).startswith(str(path))
    assert "\n" not in str(failure.value)
    assert same(mine.state_dict(), before)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_load_from_a_file_of_torch(path, prefix, legacy):
    stored = {"state_dict": weights(prefix), "epoch": 3, "best": np.float64(9.5), "args": argparse.Namespace(rate=0.1)}
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    mine = network()
    load_checkpoint(mine, path, prefix=prefix, key="state_dict")
    assert same(mine.state_dict(), weights())


def test_weights_load_from_safetensors_and_from_a_plain_state_dict(tmp_path):
    save_file(weights("module."), tmp_path / "a.safetensors")
    torch.save(dict(weights()), tmp_path / "a.pt")
    for name, prefix in (("a.safetensors", "module."), ("a.pt", "")):
        mine = network()
        load_checkpoint(mine, tmp_path / name, prefix=prefix)
        assert same(mine.state_dict(), weights())


def test_a_prefix_passes_over_what_belongs_to_others(path):
    torch.save({**weights("student."), **weights("teacher.", seed=2), "loss.weight": torch.ones(3)}, path)
    mine = network()
    load_checkpoint(mine, path, prefix="teacher.")
    assert same(mine.state_dict(), weights(seed=2))


def test_half_precision_becomes_that_of_the_network(path):
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in weights().items()}, path)
    mine = network()
    load_checkpoint(mine, path)
    assert mine.conv1.weight.dtype == torch.float32
    assert torch.equal(mine.conv1.weight, weights()["conv1.weight"].half().float())


def test_files_from_before_batch_norms_counted_batches_load(path):
    torch.save({name: value for name, value in weights().items() if "num_batches" not in name}, path)
    mine = network()
    load_checkpoint(mine, path)
    assert torch.equal(mine.linear.weight, weights()["linear.weight"])


class Upgraded(nn.Module):
    """Like torchvision's MNASNet: the version in the file's metadata decides how its weights are read."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") == 1:
            state_dict[f"{prefix}weight"] = 2 * state_dict[f"{prefix}weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_versions_of_modules_are_kept_under_a_prefix(path):
    wrapped = nn.ModuleDict({"module": nn.Sequential(Upgraded())}).state_dict()
    wrapped["module.0.weight"] = torch.ones(2)
    for version, expected in ((1, 2), (2, 1)):
        wrapped._metadata["module.0"]["version"] = version
        torch.save(wrapped, path)
        mine = nn.Sequential(Upgraded())
        load_checkpoint(mine, path, prefix="module.")
        assert mine[0].weight.tolist() == [expected] * 2
    save_file({"0.weight": torch.ones(2)}, path)  # no versions: as the network's own
    load_checkpoint(mine, path)
    assert mine[0].weight.tolist() == [1, 1]


def test_a_head_for_other_classes_may_be_left_out(path):
    torch.save(weights(classes=1000), path)
    refused(
        path, r"linear\.weight has the shape \(1000, 16\) there and \(10, 16\) here \(and 1 more\); `leave_out: \[linear\]`"
    )
    mine = network()
    head = mine.linear.weight.clone()
    load_checkpoint(mine, path, leave_out=["linear"])
    assert torch.equal(mine.linear.weight, head)
    assert torch.equal(mine.conv1.weight, weights(classes=1000)["conv1.weight"])
    with pytest.raises(ScapError, match=r"leave_out: 'fc' is no module .* it has conv1\.weight"):
        load_checkpoint(mine, path, leave_out=["fc"])


@pytest.mark.parametrize("given", ["", "modul", "module", "backbone."])
def test_the_prefix_that_would_do_is_named(path, given):
    torch.save(weights("module."), path)
    refused(path, r"lacks conv1\.weight, .* of the network; all keys begin with 'module\.': set prefix: module\.", prefix=given)


def test_a_prefix_too_many_is_named(path):
    torch.save(weights(), path)
    refused(path, "leave `prefix` out", prefix="module.")


def test_a_network_wrapped_for_several_devices_is_named(path):
    torch.save(weights(), path)
    with pytest.raises(ScapError, match=r"the network's own begin with 'module\.': give `network\.module`"):
        load_checkpoint(nn.ModuleDict({"module": network()}), path)


def test_the_key_that_wraps_the_weights_is_named(path):
    torch.save({"epoch": 1, "model": weights(), "ema": weights()}, path)
    refused(path, "its weights lie under model or ema: set key: model")
    refused(path, "lie under model or ema, not under 'state_dict': set key: model", key="state_dict")
    torch.save(weights(), path)
    refused(path, "has no key 'state_dict', its weights lie at the top; leave `key` out", key="state_dict")
    torch.save({"epoch": 1}, path)
    refused(path, "holds no weights by name; its keys are epoch")
    torch.save([torch.zeros(3)], path)
    refused(path, "holds list, no weights by name")


def test_weights_of_another_architecture_are_named(path):
    torch.save(nn.Sequential(nn.Linear(3, 4)).state_dict(), path)
    refused(path, r"lacks conv1\.weight, .*; is it of this architecture\? Its keys are 0\.weight, 0\.bias")
    torch.save(weights() | {"fc.weight": torch.ones(2)}, path)
    refused(path, r"holds fc\.weight, which the network lacks")
    lacking = weights()
    del lacking["layer2.1.bn1.weight"]
    torch.save(lacking, path)
    refused(path, r"lacks layer2\.1\.bn1\.weight of the network")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((4, 3, 3, 3), float("nan")), "holds NaN or infinity"),
        (torch.ones(4, 3, 3, 3).to(torch.int8), r"has values of torch\.int8"),
        (torch.ones(4, 3, 3, 3).to_sparse(), r"has values of .*sparse"),
        (torch.ones(4, 3, 3, 3, device="meta"), "has no values"),
        (7, "is no tensor, but int"),
    ],
)
def test_values_that_are_no_weights_are_named(path, value, message):
    torch.save(weights() | {"conv1.weight": value}, path)
    refused(path, rf"conv1\.weight {message}")


def test_objects_are_not_unpickled(path, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    for legacy in (False, True):
        torch.save({"state_dict": weights(), "evil": Evil()}, path, _use_new_zipfile_serialization=not legacy)
        refused(path, r"holds Python objects \(\w+\), which are not unpickled", key="state_dict")
    torch.save(network(), path)
    refused(path, r"holds Python objects \(torch\.nn\.modules\.container\.Sequential\)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_named(path, form):
    if form == "safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    for length in (len(whole) - 100, len(whole) // 2, 200, 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged|cut short|is no checkpoint")
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])
    refused(path, "damaged|cut short|NaN|lacks|holds")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 99]
)
def test_other_files_are_told_by_how_they_begin(path, content):
    path.write_bytes(content)
    with pytest.raises(ScapError, match=r"other\.th: is no checkpoint .* it begins with '.*'; download the file itself"):
        check_checkpoint(path)


def test_files_that_are_not_there(tmp_path):
    refused(tmp_path / "none.th", "there is no such checkpoint")
    refused(tmp_path, "is a folder")


def test_the_checksum_is_compared_as_far_as_it_is_given(path):
    torch.save(weights(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for given in (digest, digest[:8], digest[:20].upper()):
        check_checkpoint(path, given)
    refused(path, f"its SHA-256 is {digest}, not 0123456789", sha256="0123456789")


@pytest.mark.parametrize("given", ["", "12fca82", "12fca82g", 12345678, "0" * 65])
def test_what_is_no_checksum_is_said(path, given):
    torch.save(weights(), path)
    with pytest.raises(ScapError, match=r"sha256: .* is no SHA-256; give 8 to 64 hexadecimal digits"):
        check_checkpoint(path, given)


def test_files_are_checked_without_torch(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    code = (
        "import sys; from scap.models.checkpoints import check_checkpoint; "
        f"check_checkpoint({str(tmp_path / 'a.safetensors')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
