"""Every file appears whole or not at all, also where the writing process is killed or the disk is full."""

import ast
import errno
import io
import os
import resource
import signal
import stat
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from scap import writing
from scap.criterion.autoencoder import Autoencoder, save_autoencoder
from scap.criterion.spectra import write_spectra
from scap.errors import ScapError
from scap.pruning.files import save_network
from scap.reading import finite
from scap.tensors import TensorFile, save_tensors
from scap.training.progress import save_progress
from scap.writing import write_json, write_whole
from workflow.scripts.table import write_table
from workflow.store import copy_whole, md5

ROOT = Path(__file__).parents[2]


def stream(path, version):
    with TensorFile(path, {"a": (3, 2)}, torch.float16) as file:
        for _ in range(3):
            file.append("a", torch.full((1, 2), float(version)))


def network(version):
    made = nn.Sequential(nn.Conv2d(1, 2, 1))
    for parameter in made.parameters():
        nn.init.constant_(parameter, version)
    return made


def spectra(path, version):
    activations = path.with_name("activations")
    save_file({"a.inputs": torch.full((2, 1, 2, 2), float(version)), "a.outputs": torch.ones(2, 2, 2, 2)}, activations)
    write_spectra(activations, "a", path, batch_size=1)


def copied(path, version):
    source = path.with_name("source")
    source.write_bytes(bytes([version]) * 1000)
    copy_whole(source, path, md5(source))


WRITERS = {
    "bytes": lambda path, version: write_whole(path, bytes([version]) * 1000),
    "text": lambda path, version: write_whole(path, str(version) * 1000),
    "JSON": lambda path, version: write_json(path, {"top1": version}),
    "table": lambda path, version: write_table(path, pd.DataFrame({"score": [version] * 5})),
    "tensors": lambda path, version: save_tensors(path, {"a": torch.full((5,), version), "b": torch.ones(2)}, {"k": "v"}),
    "tensors batch by batch": stream,
    "network": lambda path, version: save_network(path, network(version)),
    "autoencoder": lambda path, version: save_autoencoder(path, Autoencoder(torch.ones(3, 1, version), torch.ones(1), "tanh")),
    "progress": lambda path, version: save_progress(path, {"a": torch.ones(3)}, [{"epoch": version}], "me"),
    "spectra": spectra,
    "copy": copied,
}


class Steps:
    """Wherever a process that writes `path` may be killed: notes what that would leave, and kills it at one of the steps."""

    def __init__(self, path, monkeypatch, kill=None):
        self.path, self.kill, self.left = path, kill, []
        monkeypatch.setattr(writing, "open", self.open, raising=False)
        monkeypatch.setattr(writing.os, "replace", partial(self.replace, os.replace))

    def step(self):
        self.left.append(content(self.path))
        if len(self.left) == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def open(self, path, mode, buffering):
        halves = Halves(path, mode)
        halves.before = self.step
        return halves

    def replace(self, really, source, target):
        self.step()
        really(source, target)
        self.step()


class Halves(io.FileIO):
    """Writes half of what it is given."""

    def write(self, data):
        self.before()
        return super().write(memoryview(data)[: max(1, len(data) // 2)])


def content(path):
    return path.read_bytes() if path.exists() else None


def kill_at(step, monkeypatch, write, path):
    """Write version 2 in a process of its own, which is killed at a step; whether it was."""
    child = os.fork()
    if not child:
        Steps(path, monkeypatch, kill=step)
        try:
            write(path, 2)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [True, False])
def test_a_process_killed_at_any_write_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, name, there):
    write, path = WRITERS[name], tmp_path / "file"

    def start():
        """The old file again, or none."""
        path.unlink(missing_ok=True)
        if there:
            path.write_bytes(old)

    write(path, 1)
    old = path.read_bytes()
    start()
    before = content(path)
    with monkeypatch.context() as patch:
        steps = Steps(path, patch)
        write(path, 2)
    new = content(path)
    assert new != old
    assert steps.left[:-1] == [before] * (len(steps.left) - 1)
    assert steps.left[-1] == new
    assert len(steps.left) > 3
    for step in (1, len(steps.left) // 2, len(steps.left) - 1, len(steps.left)):  # what was noted is what a kill leaves
        start()
        assert kill_at(step, monkeypatch, write, path)
        assert content(path) == steps.left[step - 1]
    write(path, 1)
    assert not list(tmp_path.glob(".*"))  # the halves of the killed are gone


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_the_umasks(tmp_path, name, mask):
    before = os.umask(mask)
    try:
        WRITERS[name](tmp_path / "new/folder/file" if name not in ("spectra", "copy") else tmp_path / "file", 1)
    finally:
        os.umask(before)
    (path,) = [path for path in tmp_path.rglob("file") if path.is_file()]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_says_file_needed_and_free_and_keeps_the_old_file(tmp_path, name, monkeypatch):
    path = tmp_path / "file"
    WRITERS[name](path, 1)
    old = path.read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "open", lambda path, mode, buffering: Full(path, mode), raising=False)
    with pytest.raises(ScapError, match=r"file: cannot be written \(No space left on device\): .+ are needed, .+ are free"):
        WRITERS[name](path, 2)
    assert path.read_bytes() == old
    assert not list(tmp_path.glob(".*"))


def test_a_limit_on_the_size_of_files_is_told_with_sizes(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(ScapError, match=r"x: cannot be written .*: 20 kB are needed, .* are free"):
            write_whole(tmp_path / "x", b"0" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file/x", "folder", "a\0b", "x" * 300])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder/inner").mkdir(parents=True)
    with pytest.raises(ScapError, match="cannot be written"):
        write_whole(tmp_path / place, "text")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_json_holds_no_nan(tmp_path):
    with pytest.raises(ScapError, match="NaN or infinite"):
        write_json(tmp_path / "x", {"top1": float("nan")})
    assert not list(tmp_path.iterdir())


def test_tensors_of_every_type_come_back(tmp_path):
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool)
    tensors = {f"t{index}": torch.arange(6).reshape(2, 3).to(dtype) for index, dtype in enumerate(types)}
    tensors |= {"scalar": torch.tensor(7), "strided": torch.arange(6.0).reshape(2, 3).T, "empty": torch.zeros(0, 3)}
    tensors["shared"] = tensors["t2"]
    save_tensors(tmp_path / "ours", tensors)
    loaded = load_file(tmp_path / "ours")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ScapError, match=r"x: dtype torch\.complex128 cannot be stored"):
        save_tensors(tmp_path / "other", {"x": torch.zeros(2, dtype=torch.complex128)})


TOOLS = {"workflow/documents.py", "workflow/environment.py"}  # they edit files that git keeps


def test_there_is_one_place_that_writes():
    """Elsewhere in the library and the workflow nothing opens a file for writing."""
    files = {str(path.relative_to(ROOT)): path for folder in ("scap", "workflow") for path in (ROOT / folder).rglob("*.py")}
    found = {name for name, path in files.items() if any(map(writes, ast.walk(ast.parse(path.read_text()))))}
    assert found - TOOLS == {"scap/writing.py"}


def writes(node):
    """Whether a node is a call that writes a file."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    opens = name == "open" and any(len(text) < 4 and set(text) & set("wax") for text in texts)
    to_path = name in ("to_csv", "to_json") and bool(node.args)
    return opens or to_path or name in ("write_text", "write_bytes", "save_file", "copyfile", "copy2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(dtype, value):
    for size in (1, 17, 100):
        assert finite(torch.randn(size).to(dtype))
        for position in range(size):
            values = torch.randn(size).to(dtype)
            values[position] = value
            assert not finite(values, at_once=40)
            assert not finite(values.numpy(), at_once=40)
    assert finite(torch.zeros(0, dtype=dtype))
