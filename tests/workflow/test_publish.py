"""Publishing: small files and models of record go to git, and a fresh clone has them back without any network."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny import CONFIG

from scap.errors import ScapError
from scap.writing import write_json
from tests.conftest import ROOT, Project
from workflow import publish
from workflow.records import record_path

TABLE, MODEL = "results/tables/mine.csv", "results/net/seed0/pruned.safetensors"


@pytest.fixture
def project(new_project):
    project = new_project()
    with (project / ".gitignore").open("a") as file:
        file.write("/notes/\n/hook/\n")
    for name, content in ((TABLE, b"a,b\n1,2\n"), (MODEL, os.urandom(1000))):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_bytes(content)
    project.git("init", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "sources")
    return project


def publish_all(project: Project) -> str:
    return project.python("-m", "workflow.publish", TABLE, MODEL, "--models", "*/pruned.safetensors")


def test_a_clone_restores_models_from_the_repository_itself(project, tmp_path):
    assert "1 files in git, 1 models in DVC" in publish_all(project)
    project.git("commit", "--quiet", "--message", "published")
    assert project.git("status", "--porcelain") == ""
    project.git("clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert (clone / TABLE).read_bytes() == (project / TABLE).read_bytes()
    assert not (clone / MODEL).exists()
    assert f"{MODEL}.dvc: restored" in clone.python("-m", "workflow.restore")
    assert (clone / MODEL).read_bytes() == (project / MODEL).read_bytes()
    assert "all sound" in clone.python("-m", "workflow.restore", "--check")


def test_a_folder_without_git_restores_them_too(project, tmp_path):
    """The project as an archive."""
    publish_all(project)
    project.git("commit", "--quiet", "--message", "published")
    project.git("archive", "--output", str(tmp_path / "project.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "project.zip", tmp_path / "unpacked")
    unpacked = Project(tmp_path / "unpacked")
    settings = (unpacked / ".dvc/config").read_text()
    assert f"{MODEL}.dvc: restored" in unpacked.python("-m", "workflow.restore")
    assert (unpacked / MODEL).read_bytes() == (project / MODEL).read_bytes()
    assert "all sound" in unpacked.python("-m", "workflow.restore", "--check")
    assert (unpacked / ".dvc/config").read_text() == settings
    assert not (unpacked / ".dvc/config.local").exists()  # it may become a git repository


def test_a_damaged_object_of_the_repository_comes_back_from_git(project):
    publish_all(project)
    project.git("commit", "--quiet", "--message", "published")
    (project / MODEL).unlink()
    shutil.rmtree(project / ".dvc/cache")
    (stored,) = (path for path in (project / "store").rglob("*") if path.is_file())
    stored.chmod(0o644)
    stored.write_bytes(b"damaged")
    for arguments in (["--check"], []):
        message = project.python("-m", "workflow.restore", *arguments, succeeds=False)
        assert "(git checkout -- store) and run this again" in message
    project.git("checkout", "--", "store")
    assert f"{MODEL}.dvc: restored" in project.python("-m", "workflow.restore")


@pytest.fixture(scope="module")
def unpublished(new_project):
    """A project with a table, no git."""
    project = new_project()
    (project / TABLE).parent.mkdir(parents=True)
    (project / TABLE).write_text("a,b\n1,2\n")
    (project / "notes.txt").write_text("mine")
    return project


def refused(monkeypatch, capsys, *arguments):
    """The one line that says why nothing is published."""
    monkeypatch.setattr(sys, "argv", ["publish", *arguments])
    assert publish.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["notes.txt"], "notes.txt: nothing to publish; git takes .csv .json .png, DVC what --models fits"),
        (["quick"], "quick: nothing of it has been made; run snakemake quick first"),
        ([TABLE, "all"], "all: nothing of it has been made; run snakemake all first"),
        ([TABLE, "--models", "*/nothing*"], "--models: '*/nothing*' fits no model that was made"),
        (["quack"], "quack: is no target, comparison or file; run snakemake quack first, or correct the name"),
    ],
)
def test_what_fits_nothing_is_refused(unpublished, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(unpublished.folder)
    assert refused(monkeypatch, capsys, *arguments).startswith(f"error: {message}")


def test_a_mistake_in_the_configuration_is_one_line(unpublished, monkeypatch, capsys):
    monkeypatch.chdir(unpublished.folder)
    with unpublished.edited(CONFIG, "terms: {l1: 1}", "trems: {l1: 1}"):
        assert "config: criteria.l1: unknown key 'trems'" in refused(monkeypatch, capsys, TABLE)
    with unpublished.edited(CONFIG, "source: digits", "source: digits, source: digits"):
        assert "the key 'source' stands here twice" in refused(monkeypatch, capsys, TABLE)


def test_another_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}: is not the folder of the project" in refused(monkeypatch, capsys, TABLE)


def test_a_machine_without_git_is_one_line(unpublished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(unpublished.folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git: is not installed, or not on the path" in refused(monkeypatch, capsys, TABLE)


def test_what_a_result_was_made_of_is_published_with_it(tmp_path, monkeypatch):
    """And what the same job made: a clone then knows that nothing of it need be made again."""
    monkeypatch.chdir(tmp_path)
    made = {
        "results/tables/mine.csv": ("runs_table", {}, ["results/net/seed0/metrics.json"]),
        "results/net/seed0/metrics.json": ("evaluate", {"seed": "0"}, ["results/net/seed0/baseline.safetensors", "data/raw"]),
        "results/net/seed0/baseline.safetensors": ("baseline", {"seed": "0"}, []),
        "results/net/seed0/baseline.history.csv": ("baseline", {"seed": "0"}, []),
        "results/net/seed0/other.csv": ("other", {"seed": "0"}, []),
    }
    for name, (rule, wildcards, inputs) in made.items():
        note = {"rule": rule, "wildcards": wildcards, "snakemake": {"input": inputs}}
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        (tmp_path / f"{name}.provenance.json").write_text(json.dumps(note))
    found = publish.with_sources([Path("results/tables/mine.csv")])
    assert {str(path) for path in found} == made.keys() - {"results/net/seed0/other.csv"}


def test_what_a_killed_run_has_made_is_published_with_its_record(unpublished, monkeypatch):
    """Snakemake knows it, but the run did not come to its end, where records are noted in the provenance files."""
    monkeypatch.chdir(unpublished.folder)
    monkeypatch.setattr(sys, "argv", ["publish", TABLE])
    monkeypatch.setattr(publish, "add_to_git", lambda files: None)
    note = Path(f"{TABLE}.provenance.json")
    note.write_text("{}")
    write_json(record_path(TABLE), {"endtime": 1.0, "input": []})
    assert publish.main() == 0
    assert json.loads(note.read_text())["snakemake"]["endtime"] == 1.0
    note.unlink()


def test_what_another_remote_holds_stays_out_of_git(project, tmp_path):
    project.python("-m", "dvc", "remote", "add", "--default", "mine", str(tmp_path / "remote"))
    publish_all(project)
    staged = project.git("diff", "--cached", "--name-only").split()
    assert {TABLE, f"{MODEL}.dvc"} <= set(staged)
    assert not [name for name in staged if name.startswith("store/")]
    assert [path.stat().st_size for path in (tmp_path / "remote").rglob("*") if path.is_file()] == [1000]


def test_models_in_git_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "STORE", 1500)
    models = [tmp_path / name for name in ("a", "b")]
    for model in models:
        model.write_bytes(os.urandom(1000))
    publish.check_size(tmp_path / "store", models[:1])
    with pytest.raises(ScapError, match="name fewer models"):
        publish.check_size(tmp_path / "store", models)


def test_the_models_of_record_fit():
    stored = [path for path in (ROOT / "store").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) <= publish.STORE
