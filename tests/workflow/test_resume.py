"""A workflow killed in the middle of a training: it resumes where it was, to the same bytes."""

import csv
import json
import os
import signal
import time

import pytest
from safetensors import safe_open

MODEL = "results/tiny/seed0/baseline.safetensors"
HISTORY = "results/tiny/seed0/baseline.history.csv"
SCORES = "results/tiny/seed0/scap/scores.csv"
EPOCHS = 8


def saved_history(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["history"])


@pytest.fixture(scope="module")
def killed(new_project):
    """A project whose baseline was killed after some epochs, with halves of its outputs, and these epochs."""
    project = new_project()
    resume = project / f"{MODEL}.resume"
    process = project.start(MODEL)
    while process.poll() is None and not resume.exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project / MODEL).exists()
    (project / MODEL).write_bytes(b"half a model")
    (project / HISTORY).write_text("half a table")
    return project, saved_history(resume)


@pytest.fixture(scope="module")
def resumed(killed):
    project, epochs = killed
    assert "--unlock" in project.snakemake(MODEL, succeeds=False)
    project.snakemake("--unlock")
    project.snakemake(MODEL)
    return project, epochs


def test_a_killed_training_goes_on(resumed):
    """The epochs before the kill are not trained again: their rows are the saved ones, wall time included."""
    project, epochs = resumed
    assert 1 <= len(epochs) < EPOCHS
    with (project / HISTORY).open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == EPOCHS
    assert rows[: len(epochs)] == epochs
    assert not (project / f"{MODEL}.resume").exists()


def test_it_ends_with_the_same_weights(resumed, project):
    """Byte by byte those of a run without a kill; the half of a model that was left is no result."""
    assert (resumed[0] / MODEL).read_bytes() == (project / MODEL).read_bytes()


def test_independent_runs_give_the_same_scores(resumed, project):
    """Law 6: settings and seed fix the score table, byte by byte."""
    resumed[0].snakemake(SCORES)
    assert (resumed[0] / SCORES).read_bytes() == (project / SCORES).read_bytes()
