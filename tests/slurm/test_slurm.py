"""The workflow on a real Slurm: one node on loopback, started here. Skipped where Slurm cannot be run."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Project
from tiny import CONFIG, FEW, FIRST, LAYERS, NOTHING, POINTS, SECOND, run_folder

SCRIPT = Path(__file__).parent / "slurm.sh"
PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "setpriv")
# No accounting; trainings on one thread, as in the local run.
MACHINE = (
    *("--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue", "--latency-wait", "5"),
    *("--set-threads", "baseline=1"),
)
# Snakemake, which asks for the state of its jobs every second: the plugin would wait for 40, 50, 60 ... seconds.
SNAKEMAKE = """
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor
Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, value: None)
main()
"""
# The first attempt of each fine-tuning comes to harm. An attempt writes down its job.
FAULTS = """
import os, pathlib, signal, time
attempts = pathlib.Path("attempts", f"{snakemake.wildcards.criterion}-{snakemake.wildcards.widths}")
attempts.parent.mkdir(exist_ok=True)
with attempts.open("a") as file:
    print(os.environ["SLURM_JOB_ID"], file=file)
if len(attempts.read_text().split()) == 1:
    if attempts.name == "l1-uniform-scap":
        pathlib.Path(snakemake.output.model).write_bytes(b"half")
    if attempts.name in ("scap-own", "l1-uniform-scap"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(SECONDS)
"""
# Where the first attempt runs out of time.
HURRY = """
def hurried(amount):
    return lambda wildcards, attempt: attempt * (amount // 200 if wildcards.criterion == "scap-second" else amount)


"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running Slurm; the folder of its logs."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a Slurm for tests needs root and Debian's slurm-wlm and munge (missing: {', '.join(missing) or 'root'})")
    base = tmp_path_factory.mktemp("slurm")
    subprocess.run(["bash", SCRIPT, "start", base], check=True)
    yield base / "log"
    subprocess.run(["bash", SCRIPT, "stop", base], check=True)


@dataclass(frozen=True)
class Submission:
    """A running submission."""

    process: subprocess.Popen[str]

    def end(self) -> str:
        """What Snakemake printed, after it ended well."""
        output = self.process.communicate()[0]
        assert self.process.returncode == 0, output
        return output

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


def submit(project: Project, *arguments: str) -> Submission:
    return Submission(project.start_python("-c", SNAKEMAKE, *arguments, *MACHINE))


def jobs_of(project: Project, rule: str = "") -> list[dict[str, str]]:
    """What Slurm knows about the jobs of a project, in the order of their submission."""
    listed = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in listed.splitlines()]
    return [job for job in jobs if job.get("WorkDir") == str(project.folder) and rule in job.get("Comment", "")]


def wait_for(condition: Callable[[], bool], submission: Submission, seconds: float = 120) -> None:
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert submission.process.poll() is None
        time.sleep(0.2)


def memory(job: dict[str, str]) -> int:
    """MB that a job asked for."""
    found = re.search(r"mem=(\d+)([MG])", job["TRES"])
    assert found is not None
    return int(found[1]) * (1024 if found[2] == "G" else 1)


def with_faults(project: Project, seconds: int) -> None:
    path = project / "workflow/scripts/finetune.py"
    path.write_text(path.read_text().replace('"""\n', '"""\n' + FAULTS.replace("SECONDS", str(seconds)), 1))


def attempts(project: Project, point: str) -> list[dict[str, str]]:
    """The jobs that tried to fine-tune the network of a criterion and widths."""
    jobs = {job["JobId"]: job for job in jobs_of(project)}
    return [jobs[name] for name in (project / f"attempts/{point}").read_text().split()]


def states(jobs: list[dict[str, str]]) -> list[str]:
    return [job["JobState"] for job in jobs]


@pytest.fixture(scope="module")
def submitted(slurm: Path, new_project: Callable[..., Project]) -> Project:
    """The tiny experiment, through Slurm from data to figures; each fine-tuning meets a fault on the way."""
    project = new_project()
    with_faults(project, 600)
    rules = project / "workflow/rules/prune.smk"
    rules.write_text(HURRY + re.sub(r"runtime=more\((\d+)\)", r"runtime=hurried(\1)", rules.read_text()))
    submission = submit(project)
    wait_for((project / "attempts/l1-scap").is_file, submission, 600)
    subprocess.run(["scancel", *(project / "attempts/l1-scap").read_text().split()], check=True)
    submission.end()
    return project


def test_the_results_equal_those_of_a_local_run(submitted, project):
    tables = [
        path for path in (project / "results").rglob("*.csv") if "history" not in path.name and path.parent.name != "tables"
    ]
    assert len(tables) == 2 * len(LAYERS) + 1 + 4 + 2 * len(POINTS)  # fidelities, a term, scores, channels and compensation
    for path in (*tables, *(project / "results").rglob("finetuned.safetensors")):
        assert (submitted / str(path.relative_to(project.folder))).read_bytes() == path.read_bytes()
    assert NOTHING in submitted.snakemake("--dry-run")


def test_resources_reach_the_scheduler(submitted):
    (baseline,) = jobs_of(submitted, "rule_baseline")
    assert baseline["JobState"] == "COMPLETED"
    assert baseline["TimeLimit"] == "10:00:00"
    assert memory(baseline) == 6000
    assert baseline["NumCPUs"] == "1"
    assert "gres/gpu" not in baseline["TRES"]
    (activations,) = jobs_of(submitted, "rule_activations")
    assert activations["NumCPUs"] == "2"
    (layers,) = jobs_of(submitted, "rule_layer")  # six autoencoders, five of which fit the memory that the profile allows
    assert layers["NumCPUs"] == "5"
    assert memory(layers) == 20000


def test_short_jobs_share_submissions(submitted):
    """43 jobs: data, baseline, three on it, all layers, all scores, six runs (four of them twice, or more), the report."""
    assert len(jobs_of(submitted)) - len(jobs_of(submitted, "rule_run")) == 8
    trained = ("scap-own", "scap-second-own", "l1-scap", "l1-uniform-scap")
    assert len(jobs_of(submitted, "rule_run")) == 2 + sum(len(attempts(submitted, name)) for name in trained)


def test_a_job_killed_once_is_tried_again_with_more(submitted):
    """As by the kernel for want of memory."""
    jobs = attempts(submitted, "scap-own")
    assert states(jobs) == ["FAILED", "COMPLETED"]
    assert memory(jobs[1]) == 2 * memory(jobs[0])


def test_a_job_out_of_time_is_tried_again_with_more(submitted):
    jobs = attempts(submitted, "scap-second-own")
    assert states(jobs)[0] == "TIMEOUT"
    assert states(jobs)[-1] == "COMPLETED"
    assert [job["TimeLimit"] for job in jobs[:2]] == ["00:03:00", "00:06:00"]


def test_a_cancelled_job_is_tried_again(submitted):
    assert states(attempts(submitted, "l1-scap")) == ["CANCELLED", "COMPLETED"]


def test_half_a_result_of_a_killed_job_is_none(submitted, project):
    """The model that the killed job had begun to write is not the one that is there."""
    assert states(attempts(submitted, "l1-uniform-scap")) == ["FAILED", "COMPLETED"]
    model = f"{run_folder('l1/uniform-scap/threshold-0.5/none', 'short')}/finetuned.safetensors"
    assert (submitted / model).read_bytes() == (project / model).read_bytes()


class TestFinished:
    """Each starts from a copy of the finished local run."""

    POINT = f"{run_folder('l1/own/threshold-0.4/none', 'short')}/finetuned.safetensors"

    @pytest.fixture
    def copy(self, slurm, project, tmp_path):
        return Project(shutil.copytree(project.folder, tmp_path / "copy"))

    def test_a_killed_submission_goes_on(self, copy):
        """Kill -9 of the submitting process; its job runs on, is waited for, and is not submitted beside itself."""
        with_faults(copy, 15)
        submission = submit(copy, self.POINT)
        wait_for((copy / "attempts/l1-own").is_file, submission)
        submission.kill()
        (first,) = jobs_of(copy)
        assert first["JobState"] == "RUNNING"
        copy.snakemake("--unlock")
        assert f"Waiting for jobs of an earlier run that still run: {first['JobId']}" in submit(copy, self.POINT).end()
        jobs = jobs_of(copy)
        assert states(jobs) == ["COMPLETED", "COMPLETED"]
        assert jobs[0]["EndTime"] <= jobs[1]["SubmitTime"]
        assert NOTHING in copy.snakemake("--dry-run", self.POINT)

    def test_a_drained_node_comes_back(self, copy):
        node = os.uname().nodename.split(".")[0]
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test"], check=True)
        submission = submit(copy, self.POINT)
        wait_for(lambda: states(jobs_of(copy)) == ["PENDING"], submission)
        time.sleep(3)
        assert states(jobs_of(copy)) == ["PENDING"]
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=True)
        submission.end()
        assert states(jobs_of(copy)) == ["COMPLETED"]

    def test_gpus_where_the_network_wants_one(self, copy):
        """Two autoencoders of one submission share it."""
        fits = [f"{FEW}/autoencoders/{name}/conv5_3.csv" for name in (FIRST, SECOND)]
        activations = f"{FEW}/activations.safetensors"
        gres = ("--set-resources", "activations:gpu=0", "activations:gres='gpu:1'")
        with copy.edited(CONFIG, "    width: 0.0625\n", "    width: 0.0625\n    gpu: 1\n"):
            for targets, arguments in ((fits, ()), ([activations], gres)):
                for path in targets:
                    (copy / path).unlink()
                submit(copy, *targets, *arguments).end()
        by_gpus, by_gres = jobs_of(copy)
        assert by_gpus["TresPerJob"] == "gres:gpu:1"  # --gpus=1
        assert by_gres["TresPerNode"] == "gres:gpu:1"  # --gres=gpu:1

    def test_the_generic_profile_submits(self, copy):
        """cluster-generic with sbatch, as a worked example for other schedulers."""
        profile = ("--workflow-profile", "profiles/cluster-generic", "--latency-wait", "5")
        Submission(copy.start_python("-m", "snakemake", *profile, self.POINT)).end()
        jobs = jobs_of(copy)
        assert [job["JobName"] for job in jobs] == ["scap-prune", "scap-finetune"]
        assert states(jobs) == ["COMPLETED", "COMPLETED"]
        assert (copy / self.POINT).is_file()
