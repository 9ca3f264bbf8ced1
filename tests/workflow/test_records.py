"""Records of another Snakemake are neither stored nor restored."""

import json

import pytest

from scap.errors import ScapError
from workflow import records


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


def test_the_snakemake_of_the_lock_is_the_one_that_was_tried():
    records.check_snakemake()
