"""Records of another Snakemake are neither stored nor restored."""

import json
from pathlib import Path

import pytest
from conftest import Project

from scap.errors import ScapError
from workflow import records
from workflow.scripts.provenance import code_state


@pytest.fixture
def result(tmp_path, monkeypatch):
    """A result with its provenance file, and Snakemake's record of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    provenance = tmp_path / "results/a.csv.provenance.json"
    provenance.write_text("{}")
    record = tmp_path / records.record_path("results/a.csv")
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"endtime": 1.0}))
    return provenance


@pytest.mark.parametrize(
    ("version", "known"), [("9.27.0", True), ("9.27.9", True), ("9.28.0", False), ("9.2.7", False), ("10.0", False)]
)
def test_the_records_of_the_snakemake_that_was_tried_are_stored(result, monkeypatch, capsys, version, known):
    monkeypatch.setattr(records, "version", {"snakemake": version}.get)
    records.export_records()
    assert ("snakemake" in json.loads(result.read_text())) == known
    warned = capsys.readouterr().err
    assert bool(warned) != known
    if not known:
        assert f"Snakemake {version}: " in warned
        assert "pip install -c constraints.txt snakemake" in warned
        with pytest.raises(ScapError, match=f"Snakemake {version}: .* records of Snakemake {records.TRIED}"):
            records.restore_records(result.parent)


def test_a_record_that_came_with_git_is_not_overwritten_by_an_older_one(result):
    """After `git pull` the file beside a result tells of a later run than what Snakemake knows here."""
    for theirs, kept in ((2.0, 2.0), (0.5, 1.0)):
        result.write_text(json.dumps({"snakemake": {"endtime": theirs}}))
        records.export_records()
        assert json.loads(result.read_text())["snakemake"]["endtime"] == kept


def test_lost_records_come_back_at_once_or_not_at_all(result, monkeypatch, capsys):
    records.export_records()
    Path("results/b.csv").write_text("")
    Path("results/b.csv.provenance.json").write_text("{}")
    record = records.record_path("results/a.csv")
    records.restore_lost_records()  # nothing is lost
    assert not capsys.readouterr().err
    record.unlink()
    records.restore_lost_records()  # `snakemake --cleanup-metadata` may have taken this one away
    assert not record.exists()
    record.parent.rmdir()
    write = records.write_json
    monkeypatch.setattr(records, "write_json", lambda *_, **__: (_ for _ in ()).throw(ScapError("the disk is full")))
    records.restore_lost_records()
    assert "warning: the disk is full; this run does not see" in capsys.readouterr().err
    assert not records.METADATA.exists()
    monkeypatch.setattr(records, "write_json", write)
    records.restore_lost_records()
    assert json.loads(record.read_text()) == {"endtime": 1.0}
    assert "results/b.csv: came without Snakemake's record" in capsys.readouterr().err


def test_the_snakemake_of_the_lock_is_the_one_that_was_tried():
    records.check_snakemake()


def test_results_on_another_disk_keep_their_records(result, tmp_path):
    """A folder of results that is a link; one that leads back to where it lies is not followed for ever."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "results/net").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(tmp_path / "results")
    (tmp_path / "disk/b.csv.provenance.json").write_text("{}")
    record = Path(records.record_path("results/net/b.csv"))
    record.write_text(json.dumps({"endtime": 2.0}))
    found = [output for output, _ in records.provenance_files(Path("results"))]
    assert found == ["results/a.csv", "results/net/b.csv"]
    records.export_records()
    assert json.loads((tmp_path / "disk/b.csv.provenance.json").read_text())["snakemake"] == {"endtime": 2.0}
    record.unlink()
    records.restore_records(Path("results"))
    assert json.loads(record.read_text()) == {"endtime": 2.0}


def test_a_result_is_of_dirty_code_where_more_than_results_has_changed(tmp_path, monkeypatch):
    """In a project that is a folder of a repository too."""
    project = Project(tmp_path / "part")
    for name in ("results/scores.csv", "scap/score.py", "config/config.yaml"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("committed")
    monkeypatch.chdir(project.folder)
    assert code_state() == {"commit": None, "dirty": None}
    Project(tmp_path).git("init", "--quiet")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message", "All")
    for name, dirty in (("results/scores.csv", False), ("scap/new.py", False), ("config/config.yaml", True)):
        (project / name).write_text("changed")
        assert code_state() == {"commit": project.git("rev-parse", "HEAD").strip(), "dirty": dirty}
