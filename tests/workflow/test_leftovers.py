"""What a killed job leaves is removed; what another run is writing is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scap.writing import HOST, WholeFile, hidden_name
from workflow.cluster import remove_leftovers
from workflow.records import INCOMPLETE, record_path

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, time
from scap.writing import WholeFile
with WholeFile("results/model") as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


@pytest.fixture
def writer(folder):
    """Another process, in the middle of a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder):
    return {path.name for path in folder.iterdir()}


def make_old(folder):
    for path in folder.iterdir():
        os.utime(path, (5, 5))


def test_what_a_killed_training_would_have_gone_on_from_goes_with_its_model(folder):
    for name in ("model", "model.resume", "other.resume", "made", "made.resume"):
        (folder / name).touch()
    running = record_path("results/made", INCOMPLETE)  # the job that makes it has not ended
    running.parent.mkdir(parents=True)
    running.touch()
    remove_leftovers(Path("results"))
    assert names(folder) == {"model", "other.resume", "made", "made.resume"}


def test_what_lies_on_another_disk_goes_too(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (folder / "net").symlink_to(tmp_path / "disk")
    for name in ("model", "model.resume", ".model.12.part"):
        (tmp_path / "disk" / name).touch()
    make_old(tmp_path / "disk")
    remove_leftovers(Path("results"))
    assert names(tmp_path / "disk") == {"model"}


@pytest.mark.parametrize("name", [".model.12.part", ".model.elsewhere.12.part", ".tmpAbC123"])
def test_old_halves_that_nobody_holds_go(folder, name):
    (folder / name).touch()
    make_old(folder)
    remove_leftovers(Path("results"))
    assert names(folder) == set()


@pytest.mark.parametrize("name", [".model.12.part", ".model.elsewhere.12.part", ".tmpAbC123"])
def test_halves_younger_than_the_run_stay(folder, name):
    started = time.time() - 60
    (folder / name).touch()
    remove_leftovers(Path("results"), started)
    assert names(folder) == {name}


def test_a_file_that_another_process_writes_stays_however_old(folder, writer):
    (part,) = names(folder)
    assert part == f".model.{HOST}.{writer.pid}.part"
    make_old(folder)
    remove_leftovers(Path("results"), time.time() + 60)
    assert names(folder) == {part}


def test_it_stays_on_another_machine_too(folder, writer):
    """There its process cannot be seen, only its lock."""
    (part,) = names(folder)
    moved = folder / part.replace(HOST, "elsewhere")
    (folder / part).rename(moved)
    make_old(folder)
    remove_leftovers(Path("results"), time.time() + 60)
    assert names(folder) == {moved.name}


def test_the_half_of_a_killed_process_goes_at_once(folder, writer):
    writer.kill()
    writer.wait()
    remove_leftovers(Path("results"), started=0)
    assert names(folder) == set()


def test_writing_again_takes_the_half_of_a_killed_process_away(folder, writer):
    writer.kill()
    writer.wait()
    with WholeFile(folder / "model") as file:
        file.write(b"whole")
    assert names(folder) == {"model"}


def test_a_hidden_name_tells_machine_and_process():
    assert hidden_name(Path("a/model.safetensors")).name == f".model.safetensors.{HOST}.{os.getpid()}.part"
