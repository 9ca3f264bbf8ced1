"""The workflow on a real Slurm: one node on loopback, started here. Skipped where Slurm cannot be run."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import CONFIG, Project
from test_workflow import LAYERS, NETWORK, NOTHING

SCRIPT = Path(__file__).parent / "slurm.sh"
PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "setpriv")
# No accounting, two real cores, no other nodes to wait for; trainings on one thread, as in the local run.
MACHINE = (
    *("--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue", "--set-threads", "baseline=1"),
    *("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5", "--group-components", "layer=3"),
)
# The first attempt of a script does this, the next ones do not.
ONCE = """
import os, pathlib, signal, time
if pathlib.Path("first").exists():
    pathlib.Path("first").unlink()
    {action}
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


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    return project.start_python("-m", "snakemake", *arguments, *MACHINE)


def submit(project: Project, *arguments: str) -> str:
    process = start(project, *arguments)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def jobs_of(project: Project) -> list[dict[str, str]]:
    """What Slurm knows about the jobs of a project, in the order of their submission."""
    listed = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout
    jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in listed.splitlines()]
    return [job for job in jobs if job.get("WorkDir") == str(project.folder)]


def job_of(project: Project, rule: str) -> list[dict[str, str]]:
    return [job for job in jobs_of(project) if rule in job["Comment"]]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Poll until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def running(project: Project, rule: str) -> bool:
    return any(job["JobState"] == "RUNNING" for job in job_of(project, rule))


@pytest.fixture(scope="module")
def submitted(slurm: Path, new_project: Callable[..., Project]) -> Project:
    """The tiny experiment, through Slurm from data to figures."""
    project = new_project()
    submit(project)
    return project


def test_the_results_equal_those_of_a_local_run(submitted, project):
    tables = [
        path for path in (project / "results").rglob("*.csv") if "history" not in path.name and path.parent.name != "tables"
    ]
    assert len(tables) == 2 * len(LAYERS) + 4 + 4  # fidelities, scores, channels
    for path in (*tables, *(project / "results").rglob("finetuned.safetensors")):
        assert (submitted / str(path.relative_to(project.folder))).read_bytes() == path.read_bytes()
    assert NOTHING in submitted.snakemake("--dry-run")


def test_resources_reach_the_scheduler(submitted):
    (baseline,) = job_of(submitted, "rule_baseline")
    assert baseline["JobState"] == "COMPLETED"
    assert baseline["TimeLimit"] == "10:00:00"
    assert "mem=6000M" in baseline["TRES"]
    assert "gres/gpu" not in baseline["TRES"]
    assert baseline["NumCPUs"] == "1"
    (activations,) = [job for job in jobs_of(submitted) if "activations" in job["Comment"]]
    assert activations["NumCPUs"] in ("2", "4")


def test_short_jobs_share_submissions(submitted):
    """36 jobs: data, baseline, two on the baseline, one for all layers, scores, four runs, the report."""
    assert 8 <= len(jobs_of(submitted)) <= 14


def test_gpus_where_the_network_wants_one(slurm, new_project):
    project = new_project()
    with project.edited(CONFIG, "    width: 0.0625\n", "    width: 0.0625\n    gpu: 1\n"):
        submit(project, f"{NETWORK}/baseline.safetensors")
        (baseline,) = job_of(project, "rule_baseline")
        assert "gres/gpu=1" in baseline["TRES"]
        assert baseline["TresPerJob"] == "gres:gpu:1"  # --gpus=1
        gres = ("--set-resources", "activations:gpu=0", "activations:gres='gpu:1'")
        submit(project, f"{NETWORK}/calibrations/few/activations.safetensors", *gres)
        (activations,) = [job for job in jobs_of(project) if "activations" in job["Comment"]]
        assert activations["TresPerNode"] == "gres:gpu:1"  # --gres=gpu:1


def with_first(project: Project, script: str, action: str) -> None:
    """Let the first attempt of a script end badly."""
    path = project / f"workflow/scripts/{script}.py"
    path.write_text(path.read_text().replace('"""\n', '"""\n' + ONCE.format(action=action), 1))
    (project / "first").touch()


class TestFaults:
    """Each starts from a copy of the finished run and makes a point at another threshold."""

    POINT = f"{NETWORK}/l1/threshold-0.4/short/finetuned.safetensors"

    @pytest.fixture
    def project(self, submitted, tmp_path):
        shutil.copytree(submitted.folder, tmp_path / "copy")
        return Project(tmp_path / "copy")

    def test_a_job_killed_once_is_tried_again_with_more(self, project):
        """As by the kernel for want of memory."""
        with_first(project, "finetune", "os.kill(os.getpid(), signal.SIGKILL)")
        submit(project, self.POINT)
        attempts = job_of(project, "finetune")
        assert [job["JobState"] for job in attempts] == ["FAILED", "COMPLETED"]
        memory = [int(re.search(r"mem=(\d+)M", job["TRES"])[1]) for job in attempts]
        assert memory[1] == 2 * memory[0]
        assert (project / self.POINT).is_file()

    def test_a_job_out_of_time_is_tried_again_with_more(self, project):
        for path in (project / "workflow/rules").glob("*.smk"):
            path.write_text(re.sub(r"runtime=more\(\d+\)", "runtime=more(1)", path.read_text()))
        with_first(project, "finetune", "time.sleep(600)")
        submit(project, self.POINT)
        attempts = job_of(project, "finetune")
        assert [job["JobState"] for job in attempts] == ["TIMEOUT", "COMPLETED"]
        limits = [job["TimeLimit"] for job in attempts]
        assert limits[0] < limits[1]

    def test_a_cancelled_job_is_tried_again(self, project):
        with_first(project, "finetune", "time.sleep(600)")
        process = start(project, self.POINT)
        wait_for(lambda: running(project, "finetune"))
        subprocess.run(["scancel", job_of(project, "finetune")[0]["JobId"]], check=True)
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert [job["JobState"] for job in job_of(project, "finetune")] == ["CANCELLED", "COMPLETED"]

    def test_a_killed_submission_goes_on(self, project):
        """Kill -9 of the submitting process; its job runs on, is waited for, and is not submitted beside itself."""
        with_first(project, "finetune", "time.sleep(15)")
        process = start(project, self.POINT)
        wait_for(lambda: running(project, "finetune"))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        (first,) = job_of(project, "finetune")
        project.snakemake("--unlock")
        output = submit(project, self.POINT)
        assert f"Waiting for jobs of an earlier run that go on here: {first['JobId']}" in output
        jobs = job_of(project, "finetune")
        assert [job["JobState"] for job in jobs] == ["COMPLETED", "COMPLETED"]
        assert jobs[0]["EndTime"] <= jobs[1]["SubmitTime"]
        assert not job_of(project, "baseline")  # what was finished before is kept
        assert NOTHING in project.snakemake("--dry-run", self.POINT)

    def test_half_a_result_of_a_killed_job_is_none(self, project, submitted):
        half = "pathlib.Path('{}').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
        with_first(project, "finetune", half.format(self.POINT))
        submit(project, self.POINT)
        assert (project / self.POINT).read_bytes() != b"half"
        assert json.loads((project / f"{self.POINT}.provenance.json").read_text())["rule"] == "finetune"

    def test_a_drained_node_comes_back(self, project):
        (node,) = {job["NodeList"] for job in jobs_of(project) or [{"NodeList": os.uname().nodename.split(".")[0]}]}
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test"], check=True)
        process = start(project, self.POINT)
        wait_for(lambda: any(job["JobState"] == "PENDING" for job in job_of(project, "finetune")))
        time.sleep(3)
        assert not running(project, "finetune")
        subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=True)
        output = process.communicate()[0]
        assert process.returncode == 0, output


def test_the_generic_profile_submits(slurm, new_project):
    """cluster-generic with sbatch, as a worked example for other schedulers."""
    project = new_project()
    process = project.start_python(
        *("-m", "snakemake", "--workflow-profile", "profiles/cluster-generic", "--latency-wait", "5"),
        "results/data/digits.safetensors",
    )
    output = process.communicate()[0]
    assert process.returncode == 0, output
    (job,) = jobs_of(project)
    assert job["JobName"] == "scap-data"
    assert job["JobState"] == "COMPLETED"
