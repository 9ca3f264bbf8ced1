"""Results under DVC: tracked, pushed, restored in another clone, and judged there by Snakemake as where they were made."""

import json
import os
import re
import shutil
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from conftest import Project
from tiny import CONFIG, FEW, FIGURES, LAYERS, NETWORK, NOTHING, POINTS, from_pruning, points_of, run_folder

from scap.data.sources import RAW_FILES
from workflow.scripts.provenance import SUFFIX

ROOT = Path(__file__).parents[2]
TRACKED = ("results/data", "results/tables", "results/figures", NETWORK)
AT_THRESHOLD = {point for point in POINTS if "threshold" in point}
POINT = POINTS[0]


def after_another_threshold() -> dict[str, set[str]]:
    """The jobs that are planned where the threshold becomes 0.4."""
    jobs = from_pruning(AT_THRESHOLD, FIGURES - {"method"})
    jobs |= {"sensitivity_table": {"sizes"}, "figure": jobs["figure"] | {"sizes/sensitivity"}}
    return {rule: {name.replace("-0.5", "-0.4") for name in names} for rule, names in jobs.items()}


FIGURE, PRUNE = "scap/figures/channels.py", "workflow/scripts/prune.py"
CHANNELS = {"figure": {"quick/channels"}}
PRUNED = from_pruning(set(POINTS), FIGURES - {"method", "scores"})
AFTER_PRUNING = after_another_threshold()


def dvc(project: Project, *arguments: str) -> str:
    return project.python("-m", "dvc", *arguments)


def restore(project: Project, *arguments: str, succeeds: bool = True) -> str:
    return project.python("-m", "workflow.restore", *arguments, succeeds=succeeds)


def track(project: Project, message: str) -> None:
    """What the README tells users to do after a run."""
    dvc(project, "add", *(name for name in TRACKED if (project / name).exists()))
    project.git("add", "--all")
    project.git("commit", "--message", message)
    dvc(project, "push")


def caches(project: Project) -> list[Path]:
    """Activations and spectra that are there."""
    return [path for name in ("activations", "spectra/*") for path in (project / FEW).glob(f"{name}.safetensors")]


def contents(project: Project) -> dict[str, bytes]:
    """All tracked files."""
    files = [path for name in TRACKED for path in (project / name).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(project.folder)): path.read_bytes()
        for path in files
        if path not in caches(project) and path.name != ".gitignore"
    }


@pytest.fixture(scope="module")
def origin(finished: tuple[Project, list], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A git repository whose tiny experiment was run, tracked and pushed."""
    shutil.copytree(finished[0].folder, folder := tmp_path_factory.mktemp("origin") / "origin")
    project = Project(folder)
    dvc(project, "remote", "add", "--default", "store", str(tmp_path_factory.mktemp("remote")))
    track(project, "results")
    return project


@pytest.fixture
def clone(origin: Project, tmp_path: Path) -> Project:
    """A fresh clone, nothing restored."""
    origin.git("clone", "--quiet", str(origin.folder), str(tmp_path / "clone"))
    return Project(tmp_path / "clone")


@pytest.fixture(scope="module")
def restored(origin: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone with its results restored, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("restored") / "clone"
    origin.git("clone", "--quiet", str(origin.folder), str(folder))
    project = Project(folder)
    assert restore(project).count(": restored") == len(TRACKED)
    return project


def test_tracking_reruns_nothing_and_links_nothing(origin):
    assert NOTHING in origin.snakemake()
    for path in (path for name in TRACKED for path in (origin / name).rglob("*")):
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1 or path.is_dir()
        assert os.access(path, os.W_OK)
    assert origin.git("status", "--porcelain") == ""
    assert "up to date" in dvc(origin, "status", *(f"{name}.dvc" for name in TRACKED))


def test_caches_are_not_stored_but_autoencoders_are(origin, restored):
    assert len(caches(origin)) == 1 + len(LAYERS)
    assert not caches(restored)
    for project in (origin, restored):
        assert len(list((project / f"{FEW}/autoencoders").rglob("*.safetensors"))) == 2 * len(LAYERS)


def test_a_restored_clone_has_nothing_to_do_and_the_same_bytes(origin, restored):
    assert NOTHING in restored.snakemake("--dry-run")
    assert contents(restored) == contents(origin)


@pytest.mark.parametrize(
    ("edits", "planned"),
    [
        ([(CONFIG, "thresholds: [0.5]", "thresholds: [0.4]")], AFTER_PRUNING),
        ([(FIGURE, "    before, after = table[", "    len(table)\n    before, after = table[")], CHANNELS),
        ([(PRUNE, "    own = read_scores(", "    len(inputs)\n    own = read_scores(")], PRUNED),
        ([(FIGURE, '"""', '"""Edited. '), (PRUNE, '"""', '"""Edited. ')], {}),
    ],
)
def test_what_was_edited_before_the_restore_is_stale(clone, edits, planned):
    """Configuration, modules and scripts are compared with what made the results, not with the date of the pull."""
    for path, old, new in edits:
        text = (clone / path).read_text()
        assert old in text
        (clone / path).write_text(text.replace(old, new, 1))
    restore(clone)
    assert clone.plan() == planned


def test_results_of_another_commit_are_stale(origin, clone):
    """A commit that changes the training without running it: its pointers still name the old results."""
    text = (clone / CONFIG).read_text()
    (clone / CONFIG).write_text(text.replace("epochs: 8", "epochs: 7"))
    clone.git("commit", "--all", "--message", "a shorter training, not run")
    restore(clone)
    plan = clone.plan()
    assert {"baseline", "evaluate_baseline", "activations", "prune"} <= set(plan)
    assert "data" not in plan


def test_an_edited_result_is_not_taken_for_its_own(clone):
    """Another score table under old results: what follows from it is planned, by content."""
    restore(clone)
    scores = clone / f"{NETWORK}/scap/scores.csv"
    scores.write_text(scores.read_text().replace("conv1_1,0,", "conv1_1,0,0", 1))
    assert clone.plan()["prune"] == points_of("scap")  # those of l1 take their widths from it


def test_the_life_of_a_second_clone(origin, clone):
    """Restore, change the threshold, run, push; the first clone pulls it back and has nothing to do."""
    restore(clone)
    baseline = (clone / f"{NETWORK}/baseline.safetensors").stat()
    kept = baseline.st_ino, baseline.st_mtime_ns
    text = (clone / CONFIG).read_text()
    (clone / CONFIG).write_text(text.replace("thresholds: [0.5]", "thresholds: [0.4]"))
    assert clone.plan() == AFTER_PRUNING
    clone.snakemake()
    baseline = (clone / f"{NETWORK}/baseline.safetensors").stat()
    assert (baseline.st_ino, baseline.st_mtime_ns) == kept
    assert not caches(clone)
    track(clone, "another threshold")
    clone.git("push", "origin", "HEAD:refs/heads/threshold")
    before = origin.git("rev-parse", "HEAD").strip()
    origin.git("merge", "--quiet", "threshold")
    try:
        restore(origin)
        assert NOTHING in origin.snakemake("--dry-run")
        assert contents(origin) == contents(clone)
        metrics = f"{run_folder(POINT.replace('0.5', '0.4'), 'short')}/metrics.json"
        printed = dvc(origin, "metrics", "diff", before, "HEAD", "--targets", metrics, "--json")
        diff = json.loads(printed.splitlines()[-1])  # before it, that the older commit has no such metrics
        pruned = json.loads((origin / metrics).read_text())["pruned"]
        assert diff[metrics]["pruned.macs"]["new"] == pruned["macs"]
    finally:
        origin.git("reset", "--hard", "--quiet", before)
        restore(origin)
    assert NOTHING in origin.snakemake("--dry-run")


def test_a_killed_restore_goes_on(origin, clone):
    """Kill -9 as soon as something arrived."""
    process = clone.start_python("-m", "workflow.restore")
    while process.poll() is None and not list((clone / ".dvc").glob("cache/files/md5/*/*")):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    restore(clone)
    assert contents(clone) == contents(origin)
    assert NOTHING in clone.snakemake("--dry-run")


def damage(path: Path) -> None:
    """Another byte in the middle of a protected file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def objects(store: Path, size: int) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_file() and path.stat().st_size == size]


def test_a_damaged_cache_object_is_named_and_fetched_anew(origin, clone):
    restore(clone)
    model = clone / f"{NETWORK}/baseline.safetensors"
    expected = model.read_bytes()
    (cached,) = objects(clone / ".dvc/cache", len(expected))
    damage(cached)
    model.unlink()
    assert f"{NETWORK}/baseline.safetensors: damaged in the cache" in restore(clone)
    assert model.read_bytes() == expected
    assert NOTHING in clone.snakemake("--dry-run")


def test_an_object_damaged_in_the_remote_is_an_error_and_keeps_the_rest(origin, clone):
    remote = Path(re.search(r"^store\s+(\S+)", dvc(origin, "remote", "list"), re.MULTILINE)[1])
    model = f"{run_folder(POINT, 'short')}/finetuned.safetensors"
    size = (origin / model).stat().st_size
    stored = [path for path in objects(remote, size) if path.read_bytes() == (origin / model).read_bytes()]
    content = stored[0].read_bytes()
    damage(stored[0])
    try:
        message = restore(clone, succeeds=False)
    finally:
        stored[0].chmod(0o644)
        stored[0].write_bytes(content)
    assert f"{model} (" in message
    assert "neither the cache nor the remote has, undamaged" in message
    assert (clone / f"{NETWORK}/baseline.safetensors").is_file()
    restore(clone)
    assert contents(clone) == contents(origin)


def test_work_that_is_not_tracked_is_never_overwritten(clone):
    restore(clone)
    (clone / f"{NETWORK}/scap/scores.csv").write_text("mine")
    message = restore(clone, succeeds=False)
    assert f"{NETWORK}.dvc: 1 files differ" in message
    assert (clone / f"{NETWORK}/scap/scores.csv").read_text() == "mine"


def test_two_machines_push_results_of_one_seed(origin, tmp_path):
    """Each adds a point of its own: DVC's merge driver joins the folders behind the pointer."""
    first, second = (Project(tmp_path / name) for name in ("first", "second"))
    points = {}
    for project, threshold in ((first, "0.3"), (second, "0.7")):
        origin.git("clone", "--quiet", str(origin.folder), str(project.folder))
        driver = "-m dvc git-hook merge-driver --ancestor %O --our %A --their %B"
        project.git("config", "merge.dvc.driver", f"{sys.executable} {driver}")
        restore(project)
        points[threshold] = f"{run_folder(f'l1/own/threshold-{threshold}/none')}/channels.csv"
        project.snakemake(points[threshold])
        track(project, threshold)
        project.git("push", "--quiet", "origin", f"HEAD:refs/heads/at-{threshold}")
    second.git("fetch", "--quiet")
    second.git("checkout", "--quiet", "origin/at-0.3")
    dvc(second, "fetch")
    second.git("checkout", "--quiet", "main")
    second.git("merge", "--no-edit", "origin/at-0.3")
    restore(second)
    for path in points.values():
        assert (second / path).is_file()
    assert NOTHING in second.snakemake("--dry-run", *points.values())
    assert NOTHING in second.snakemake("--dry-run")


def test_provenance_says_what_made_a_result(origin):
    files = {str(path.relative_to(origin.folder)) for path in (origin / "results").rglob("*") if path.is_file()}
    made = {path for path in files if not path.endswith((SUFFIX, ".dvc", ".gitignore"))}
    assert {path.removesuffix(SUFFIX) for path in files if path.endswith(SUFFIX)} == made
    commits, read = origin.git("rev-list", "HEAD").split(), set()
    for path in made:
        provenance = json.loads((origin / f"{path}{SUFFIX}").read_text())
        assert provenance["output"] == path
        assert provenance["code"] == {"commit": commits[-1], "dirty": False}
        assert provenance["seconds"] > 0
        assert all(checksum.startswith("sha256:") for checksum in provenance["snakemake"]["input_checksums"].values())
        assert re.fullmatch(r"[0-9a-f]{16}", provenance["config"]["code"])
        read |= provenance["snakemake"]["input_checksums"].keys()
    assert {path for path in made if path.endswith(("baseline.safetensors", "scores.csv", "pruned.safetensors"))} <= read
    one = json.loads((origin / f"{NETWORK}/baseline.safetensors{SUFFIX}").read_text())
    assert one["rule"] == "baseline"
    assert one["wildcards"] == {"network": "tiny", "seed": "0"}
    assert one["config"]["cfg"]["training"]["epochs"] == 8
    assert set(one["versions"]) == {"python", "scap", "torch", "snakemake"}
    assert one["versions"]["torch"] == version("torch")
    assert "cores" in one["device"] or "NVIDIA" in one["device"]


def test_metrics_are_the_files_that_the_workflow_writes(origin):
    metrics = f"{run_folder(POINT, 'short')}/metrics.json"
    shown = json.loads(dvc(origin, "metrics", "show", metrics, "--json"))
    assert shown[""]["data"][metrics]["data"] == json.loads((origin / metrics).read_text())


def test_the_metrics_and_plots_of_dvc_are_results_of_the_quickstart(new_project):
    """And there are no stages: no second definition of the pipeline."""
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert set(declared) == {"metrics", "plots"}
    planned = new_project(None).snakemake("--dry-run", "--quiet", "all", "--summary")
    for path in [*declared["metrics"], *(name for plot in declared["plots"] for name in plot)]:
        assert path in planned


def test_the_data_pointer_names_the_official_files():
    pinned = {out["path"]: out["md5"] for out in yaml.safe_load((ROOT / "data.dvc").read_text())["outs"]}
    assert pinned == {f"data/{name}": md5 for name, md5 in RAW_FILES["cifar10"].items()}


BATCHES = {"data_batch_1": "one", "test_batch": "two"}
MD5 = {"data_batch_1": "f97c5d29941bfb1b2fdab0874906ab82", "test_batch": "b8a9f715dbb64fd5c56e7783c6820a61"}


class TestData:
    """Small files in the place of the batches."""

    @pytest.fixture
    def project(self, new_project, tmp_path):
        project = new_project()
        project.git("init", "--quiet")
        dvc(project, "remote", "add", "--default", "store", str(tmp_path / "remote"))
        outs = [{"md5": md5, "size": 3, "hash": "md5", "path": f"data/batches/{name}"} for name, md5 in MD5.items()]
        (project / "data.dvc").write_text(yaml.safe_dump({"outs": outs}))
        (tmp_path / "source/batches").mkdir(parents=True)
        for name, text in BATCHES.items():
            (tmp_path / "source/batches" / name).write_text(text)
        return project

    def test_from_a_folder_then_from_the_remote(self, project, tmp_path):
        pointer = (project / "data.dvc").read_text()
        assert "2 files, verified" in restore(project, "data.dvc", "--source", str(tmp_path / "source"))
        assert "up to date" in dvc(project, "status")
        assert yaml.safe_load((project / "data.dvc").read_text()) == yaml.safe_load(pointer)
        dvc(project, "push")
        for path in (*(project / "data").rglob("*batch*"), *(project / ".dvc/cache").rglob("*")):
            if path.is_file():
                path.unlink()
        assert "2 files, verified" in restore(project, "data.dvc")
        assert {name: (project / "data/batches" / name).read_text() for name in BATCHES} == BATCHES

    def test_a_wrong_byte_is_named(self, project, tmp_path):
        (tmp_path / "source/batches/test_batch").write_text("twO")
        message = restore(project, "data.dvc", "--source", str(tmp_path / "source"), succeeds=False)
        assert "source/batches/test_batch: damaged" in message
        assert not (project / "data/batches/test_batch").exists()
        (project / "data/batches/test_batch").write_text("twO")
        assert "data/batches/test_batch: damaged" in restore(project, "data.dvc", succeeds=False)

    def test_a_missing_file_is_named(self, project, tmp_path):
        (tmp_path / "source/batches/test_batch").unlink()
        message = restore(project, "data.dvc", "--source", str(tmp_path / "source"), succeeds=False)
        assert "holds no batches/test_batch" in message


def test_a_missing_pointer_is_named(restored):
    assert "results/none.dvc: no such pointer" in restore(restored, "results/none.dvc", succeeds=False)
