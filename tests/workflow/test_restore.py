"""Restoring from pointers, caches and remotes that are hostile, damaged or incomplete: a line, and nothing else is lost."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workflow import pointers, records, store
from workflow import restore as restoring
from workflow.records import export_records, record_path, restore_records
from workflow.store import RestoreError, copy_whole

ROOT = Path(__file__).parents[2]
NAME = "0" * 32
ESCAPES = {
    "parent": "../victim.txt",
    "parents within": "a/../../../victim.txt",
    "absolute": "/tmp/victim.txt",
    "drive": "C:\\victim.txt",
    "drive of now": "C:victim.txt",
    "backslashes": "..\\victim.txt",
    "address": "file:///victim.txt",
    "hooks": ".git/hooks/post-checkout",
    "settings of DVC": "a/.DVC/config",
    "nothing": "",
    "the folder": ".",
    "zero": "a\0b",
    "no text": 5,
    "a list": ["a"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project's folder with a cache, but without DVC and a remote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(pointers, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(store, "remote", lambda: None)
    pointers._place.cache_clear()
    (tmp_path / "results").mkdir()
    return tmp_path


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def point(path: Path, outs: object, **more: object) -> Path:
    path.write_text(yaml.safe_dump({"outs": outs, **more}))
    return path


def keep(cache: Path, content: bytes, suffix: str = "") -> str:
    """Put an object into a cache."""
    name = md5_of(content)
    path = cache / f"{store.object_path(name)}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name + suffix


@pytest.mark.parametrize("name", ESCAPES)
def test_a_path_that_leaves_the_pointers_folder_is_refused(folder, name):
    pointer = point(folder / "results/x.dvc", [{"path": ESCAPES[name], "md5": NAME}])
    with pytest.raises(RestoreError, match=r"x\.dvc: .* leaves the folder of the pointer; refused"):
        pointers.outs(pointer)


@pytest.mark.parametrize("name", ESCAPES)
def test_a_list_that_leaves_its_folder_is_refused(folder, name):
    listing = json.dumps([{"relpath": "fine", "md5": NAME}, {"relpath": ESCAPES[name], "md5": NAME}]).encode()
    pointer = point(folder / "results/x.dvc", [{"path": "a", "md5": keep(folder / "cache", listing, ".dir")}])
    with pytest.raises(RestoreError, match=r"x\.dvc: .* leaves the folder of the pointer; refused"):
        list(pointers.tracked_files(pointer))


@pytest.mark.parametrize("link", ["results/a", "results/a/b", "results/a/b/c"])
def test_a_link_that_leads_out_is_refused(folder, link):
    (folder / "elsewhere").mkdir()
    (folder / link).parent.mkdir(parents=True, exist_ok=True)
    (folder / link).symlink_to(folder / "elsewhere")
    pointer = point(folder / "results/x.dvc", [{"path": "a/b/c", "md5": NAME}])
    with pytest.raises(RestoreError, match=r"x\.dvc: 'a/b/c' leaves .* link"):
        pointers.outs(pointer)


def test_a_link_into_the_cache_is_dvcs_own(folder):
    (folder / "results/a").symlink_to(folder / "cache/00/00")
    assert pointers.outs(point(folder / "results/x.dvc", [{"path": "a", "md5": NAME}]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "outs:\n<<<<<<< HEAD\n- md5: a\n=======\n- md5: b\n>>>>>>> b\n",
            "holds the conflict markers of a merge; take",
        ),
        ("", "names no outs"),
        ("outs: []\n", "names no outs"),
        ("outs: {}\n", "names no outs"),
        ("- outs\n", "names no outs"),
        ("outs: [5]\n", "an out has no MD5"),
        ("outs: [{path: a}]\n", "an out has no MD5"),
        ("outs: [{path: a, md5: ../../../victim}]\n", "an out has no MD5"),
        (f"outs: [{{path: a, md5: {NAME[:31]}}}]\n", "an out has no MD5"),
        (f"wdir: ../..\nouts: [{{path: a, md5: '{NAME}'}}]\n", "wdir '../..' leads elsewhere"),
        ("outs: [\n", "not readable"),
        ("\x00", "not readable"),
        ("[" * 5000, "not readable"),
    ],
)
def test_a_pointer_that_is_none_is_one_line(folder, text, message):
    pointer = folder / "results/x.dvc"
    pointer.write_text(text)
    with pytest.raises(RestoreError, match=message) as raised:
        list(pointers.tracked_files(pointer))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"", "damaged"),
        (b"{}", "names no file|damaged"),
        (b'[{"relpath": "a"}]', "damaged"),
        (b'["a"]', "damaged"),
        (b'[{"relpath": "a", "md5": "../../../victim"}]', "no MD5 for"),
        (b'[{"relpath": "a", "md5": "%b"}, {"relpath": "a", "md5": "%b"}]' % ((b"0" * 32,) * 2), "one file twice"),
        (b'[{"relpath": "a", "md5": "%b"}, {"relpath": "a/b", "md5": "%b"}]' % ((b"0" * 32,) * 2), "one file twice"),
    ],
)
def test_a_list_that_is_none_is_one_line(folder, listing, message):
    pointer = point(folder / "results/x.dvc", [{"path": "a", "md5": keep(folder / "cache", listing, ".dir")}])
    if listing == b"{}":
        assert list(pointers.tracked_files(pointer)) == []
        return
    with pytest.raises(RestoreError, match=message):
        list(pointers.tracked_files(pointer))


def test_a_damaged_list_is_not_believed(folder):
    name = keep(folder / "cache", b"[]", ".dir")
    (folder / "cache" / store.object_path(name)).write_bytes(b'[{"relpath": "../x", "md5": "x"}]')
    pointer = point(folder / "results/x.dvc", [{"path": "a", "md5": name}])
    with pytest.raises(RestoreError, match=f"{name[:2]}/{name[2:]}.* neither in the cache nor, sound, in the remote"):
        list(pointers.tracked_files(pointer))


def test_a_copy_is_whole_or_not_at_all(tmp_path):
    source, path = tmp_path / "source", tmp_path / "data/batches/one"
    source.write_bytes(b"one")
    with pytest.raises(RestoreError, match=r"source: damaged \(MD5 .*, not .*\); it was not copied"):
        copy_whole(source, path, NAME)
    assert list(path.parent.iterdir()) == []
    copy_whole(source, path, md5_of(b"one"))
    assert path.read_bytes() == b"one"


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A folder with three pushed results, the sources of the workflow beside it on the path."""
    top = tmp_path_factory.mktemp("origin")
    folder = top / "project"
    folder.mkdir()
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    run(folder, "git", "init", "--quiet")
    dvc(folder, "remote", "add", "--default", "store", str(top / "remote"))
    for name in ("a", "b", "c"):
        for file in ("one", "two"):
            (folder / "results" / name).mkdir(parents=True, exist_ok=True)
            (folder / "results" / name / file).write_text(f"{name}/{file}")
    dvc(folder, "add", "results/a", "results/b", "results/c")
    dvc(folder, "push")
    return folder


class TestWithDVC:
    """One project with a remote: what is sound is restored, whatever else there is."""

    @pytest.fixture
    def clone(self, origin, tmp_path):
        """The pointers alone, and a remote of their own."""
        folder = tmp_path / "top/clone"
        folder.mkdir(parents=True)
        shutil.copytree(origin / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        shutil.copytree(origin.parent / "remote", tmp_path / "remote")
        run(folder, "git", "init", "--quiet")
        config = folder / ".dvc/config"
        config.write_text(config.read_text().replace(str(origin.parent / "remote"), str(tmp_path / "remote")))
        (folder / "results").mkdir()
        for pointer in (origin / "results").glob("*.dvc"):
            shutil.copy(pointer, folder / "results")
        return folder

    def objects(self, clone: Path) -> Path:
        return clone.parents[1] / "remote"

    def test_hostile_pointers_are_refused_and_the_others_restored(self, clone):
        victims = [clone / "Snakefile", clone.parent / "victim", clone.parents[1] / "victim"]
        for victim in victims:
            victim.write_text("mine")
        evil = keep(self.objects(clone), b"evil")
        listing = json.dumps([{"relpath": "../../../victim", "md5": evil}, {"relpath": "good", "md5": evil}]).encode()
        escape = json.dumps([{"relpath": "x", "md5": "../../../../../victim"}]).encode()
        folders = [keep(self.objects(clone), content, ".dir") for content in (listing, escape)]
        (clone / "results/d").symlink_to(clone.parent)
        (clone / "results/d").with_name("link").symlink_to(clone.parent)
        hostile = {
            "file": {"path": "../../victim", "md5": evil},
            "missing": {"path": "../../victim", "md5": NAME},
            "absolute": {"path": str(victims[1]), "md5": evil},
            "listed": {"path": "f", "md5": folders[0]},
            "named": {"path": "g", "md5": folders[1]},
            "linked": {"path": "link/victim", "md5": evil},
        }
        for name, out in hostile.items():
            point(clone / f"results/{name}.dvc", [out | {"size": 4, "hash": "md5"}])
        point(clone / "results/moved.dvc", [{"path": "Snakefile", "md5": evil, "size": 4, "hash": "md5"}], wdir="..")
        done = restore(clone, code=1)
        assert [victim.read_text() for victim in victims] == ["mine"] * 3
        for name in (*hostile, "moved"):
            assert f"error: results/{name}.dvc: " in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout.count(": restored") == 3
        assert (clone / "results/a/one").read_text() == "a/one"

    def test_one_bad_pointer_or_object_keeps_nothing_else_back(self, clone):
        (clone / "results/bad.dvc").write_text("<<<<<<< ours\n")
        (lost,) = [path for path in self.objects(clone).rglob("*") if path.is_file() and path.read_bytes() == b"a/one"]
        lost.unlink()
        done = restore(clone, code=1)
        assert f"results/a/one ({lost.parent.name}/{lost.name})" in done.stderr
        assert "results/bad.dvc: holds the conflict markers" in done.stderr
        assert (clone / "results/a/two").read_text() == "a/two"
        assert (clone / "results/b/one").read_text() == "b/one"
        assert (clone / "results/c/two").read_text() == "c/two"

    def test_a_users_own_file_is_never_deleted(self, clone):
        restore(clone)
        (clone / "results/a/one").write_text("mine")
        shutil.rmtree(self.objects(clone))
        shutil.rmtree(clone / ".dvc/cache")
        done = restore(clone, code=1)
        assert (clone / "results/a/one").read_text() == "mine"
        assert "Traceback" not in done.stderr

    def test_a_remote_is_checked_and_mended_as_the_message_says(self, clone):
        restore(clone)
        (lost,) = [path for path in self.objects(clone).rglob("*") if path.is_file() and path.read_bytes() == b"a/one"]
        (hurt,) = [path for path in self.objects(clone).rglob("*") if path.is_file() and path.read_bytes() == b"b/two"]
        assert restore(clone, "--check").stdout.count("3 objects in the remote, all sound") == 3
        lost.unlink()
        hurt.chmod(0o644)
        hurt.write_bytes(b"b/TWO")
        done = restore(clone, "--check", code=1)
        assert f"results/a/one is missing ({lost})" in done.stderr
        assert f"results/b/two is damaged ({hurt})" in done.stderr
        assert "results/c.dvc: 3 objects in the remote, all sound" in done.stdout
        assert "up to date" in dvc(clone, "push").stdout  # which is not so
        for line in done.stderr.splitlines():
            for path in line.split("To mend it: delete ")[1].split(" there, then ")[0].split():
                Path(path).unlink()
        dvc(clone, "push")
        assert restore(clone, "--check").stdout.count("all sound") == 3

    def test_a_clone_without_pointers_is_told(self, clone):
        for pointer in (clone / "results").glob("*.dvc"):
            pointer.unlink()
        assert "no pointer below results/" in restore(clone, code=1).stderr


def run(folder: Path, *command: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == code, done.stdout + done.stderr
    return done


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def restore(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "workflow.restore", *arguments, code=code)


RECORDS = [b'{"snakemake": 5}', b'{"snakemake": {"endtime": "noon"}}', b'{"snakemake": {"endtime": NaN}}']


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff", *RECORDS])
def test_damaged_provenance_is_skipped_with_a_warning(tmp_path, monkeypatch, capsys, damage):
    """In the workflow's end hook and when results are restored; the other results are settled."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        result = f"results/{name}"
        Path("results").mkdir(exist_ok=True)
        Path(result).touch()
        record_path(result).parent.mkdir(parents=True, exist_ok=True)
        record_path(result).write_text('{"endtime": 5}')
        Path(f"{result}.provenance.json").write_text("{}")
    Path("results/a.provenance.json").write_bytes(damage)
    export_records(Path("results"))
    assert json.loads(Path("results/b.provenance.json").read_text()) == {"snakemake": {"endtime": 5}}
    Path("results/a.provenance.json").write_bytes(damage)
    record_path("results/b").write_text("{")
    export_records(Path("results"))
    Path("results/a.provenance.json").write_bytes(damage)
    assert restore_records(Path("results")) == ["results/a"]
    assert Path("results/b").stat().st_mtime == 5
    assert "warning: .snakemake/metadata/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda patch, folder: patch.setattr(records, "version", {"snakemake": "10.0"}.get), "Snakemake 10.0: results travel"),
        (lambda patch, folder: (folder / ".snakemake").touch(), ".snakemake/metadata: cannot be written (Not a directory)"),
    ],
    ids=["another Snakemake", "nowhere to write"],
)
def test_what_would_refuse_every_record_is_said_once_and_first(folder, monkeypatch, capsys, spoil, message):
    for name in ("a", "b"):
        (folder / f"results/{name}.provenance.json").write_text("{}")
        point(folder / f"results/{name}.dvc", [{"path": name, "md5": NAME}])
    monkeypatch.setattr(restoring, "fetch", lambda pointers: pytest.fail("DVC was let at the results"))
    monkeypatch.setattr(sys, "argv", ["restore"])
    spoil(monkeypatch, folder)
    assert restoring.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_records_that_cannot_be_written_in_the_end_are_one_line(folder, monkeypatch, capsys):
    """As on a disk that is full by then."""
    (folder / "results/a.provenance.json").write_text(json.dumps({"snakemake": {"endtime": 5}}))
    monkeypatch.setattr(sys, "argv", ["restore"])
    monkeypatch.setattr(records, "METADATA", Path("results"))
    monkeypatch.setattr(records, "record_path", lambda output, folder: Path("results/a.provenance.json/a"))
    assert restoring.main() == 1
    assert capsys.readouterr().err.startswith("error: ")
