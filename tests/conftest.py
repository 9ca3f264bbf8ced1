"""Copies of the workflow in temporary folders, run by the real snakemake on a tiny experiment."""

import gc
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from tiny import CONFIG, TINY

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes of pytest-xdist share the cores

# Other work may run beside the tests.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT = Path(__file__).parent.parent
# One thread a job: so small a network gains nothing from more, and results do not depend on the machine's cores.
MACHINE = ("--cores", "2", "--set-threads", "baseline=1")


def choices(cls: type, name: str) -> tuple[str, ...]:
    """What a field of a settings class may hold."""
    return next(each.metadata["choices"] for each in fields(cls) if each.name == name)


@dataclass(frozen=True)
class Job:
    """A job as snakemake announces it."""

    rule: str
    inputs: list[str]
    wildcards: dict[str, str]

    @property
    def name(self) -> str:
        """What tells it from the other jobs of its rule, in the tiny experiment."""
        return "/".join(
            value for key, value in self.wildcards.items() if key not in ("dataset", "network", "seed", "calibration")
        )


def jobs(output: str) -> list[Job]:
    """The jobs that a run or a dry run of snakemake printed."""
    found = []
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", output, re.MULTILINE):
        fields = dict(line.strip().split(": ", 1) for line in block.splitlines())
        wildcards = dict(part.split("=", 1) for part in fields.get("wildcards", "").split(", ") if part)
        found.append(Job(rule, fields.get("input", "").split(", "), wildcards))
    return found


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The inner loop does not even import what it leaves out (-m "not workflow and not slurm")."""
    left_out = [part.removeprefix("not ") for part in config.option.markexpr.split(" and ") if part.startswith("not ")]
    return True if collection_path.parent == ROOT / "tests" and collection_path.name in left_out else None


LONG = ("test_slurm.py", "test_storage.py", "test_reruns.py", "test_workflow.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Markers by folder; and the files that take minutes first, so that no process is left with one at the end."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in ("workflow", "slurm"):
            item.add_marker(folder)
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector of garbage need not look at it again and again."""
    gc.freeze()


# What makes a folder a copy of the project.
PARTS = (
    "workflow",
    "config",
    "scap",
    "profiles",
    ".dvc",
    "Snakefile",
    "dvc.yaml",
    "data.dvc",
    ".dvcignore",
    ".gitignore",
    ".gitattributes",
)


class Project:
    """A copy of the project with a configuration of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @classmethod
    def copy(cls, folder: Path, config: str | None) -> "Project":
        """A copy of the files of this repository."""
        for name in PARTS:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("*.pyc.*", "cache", "tmp")  # compiled code is valid in a copy too
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, folder)
        (folder / "store").mkdir()
        if config is not None:
            (folder / CONFIG).write_text(config)
            shutil.rmtree(folder / "config/experiments")
        (folder / "notes").mkdir()
        (folder / "hook").mkdir()
        return cls(folder)

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def git(self, *arguments: str) -> str:
        """What git printed."""
        identity = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
        command = ["git", *identity, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start snakemake, in a process group of its own."""
        return self.start_python("-m", "snakemake", *arguments, *MACHINE)

    def start_python(self, *arguments: str) -> subprocess.Popen[str]:
        """Start python in the folder, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def environment(self) -> dict[str, str]:
        """That of the tests, and where tests/hook.py lies and writes."""
        paths = {"PYTHONPATH": str(self / "hook"), "NOTES": str(self / "notes")}
        return {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE_")} | paths

    def snakemake(self, *arguments: str, succeeds: bool = True) -> str:
        """What snakemake printed, after it ended as expected."""
        from warm import snakemake  # here, as tests of the library need not import Snakemake

        status, printed = snakemake(self.folder, (*arguments, *MACHINE), self.environment())
        assert (status == 0) == succeeds, printed
        return printed

    def python(self, *arguments: str, succeeds: bool = True) -> str:
        """What python printed, after it ended as expected."""
        process = self.start_python(*arguments)
        printed = process.communicate()[0]
        assert (process.returncode == 0) == succeeds, printed
        return printed

    def plan(self, *targets: str) -> dict[str, set[str]]:
        """The jobs of a dry run, those of each rule by name; without the target itself."""
        planned = defaultdict(set)
        for job in jobs(self.snakemake("--dry-run", *targets)):
            if job.wildcards or job.rule != (targets or ("all",))[0]:
                planned[job.rule].add(job.name)
        return dict(planned)

    @contextmanager
    def edited(self, path: str, old: str, new: str) -> Iterator[None]:
        """Replace `old` by `new` in a file, for a while."""
        text = (self / path).read_text()
        assert text.count(old) == 1
        (self / path).write_text(text.replace(old, new))
        try:
            yield
        finally:
            (self / path).write_text(text)


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    """Makes a copy of the project, with the tiny experiment or (None) with the configuration as it is."""

    def make(config: str | None = TINY) -> Project:
        return Project.copy(tmp_path_factory.mktemp("project"), config)

    return make


def _finish(folder: Path) -> None:
    """Run the tiny experiment in a git repository, from data to figures; what snakemake planned lies beside the folder."""
    project = Project.copy(folder, TINY)
    with (project / ".gitignore").open("a") as file:
        file.write("/notes/\n/hook/\n")
    project.git("init", "--quiet", "--initial-branch=main")
    project.git("add", "--all")
    project.git("commit", "--message", "sources")
    planned = project.snakemake("--dry-run")
    shutil.copy(ROOT / "tests/hook.py", project / "hook/sitecustomize.py")
    (project / "hook/printed.txt").write_text(project.snakemake())  # there git ignores it
    (project / "hook/sitecustomize.py").unlink()
    folder.with_suffix(".out").write_text(planned)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> tuple[Project, list[Job]]:
    """A project in a git repository, whose tiny experiment was run from data to figures, and the jobs that ran.

    Made once; each process of pytest-xdist has a copy of its own.
    """
    alone = worker_id == "master"
    base = tmp_path_factory.getbasetemp()
    made = (base if alone else base.parent) / "finished"
    with FileLock(made.with_suffix(".lock")):
        if not made.with_suffix(".out").exists():
            made.mkdir()
            _finish(made)
    folder = made if alone else shutil.copytree(made, tmp_path_factory.mktemp("finished") / "project")
    return Project(folder), jobs(made.with_suffix(".out").read_text())


@pytest.fixture(scope="session")
def project(finished: tuple[Project, list[Job]]) -> Project:
    """A project whose tiny experiment was run from data to figures."""
    return finished[0]
