"""What a cluster needs beyond Snakemake's executor: a submission that was killed leaves jobs behind, which keep running."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from scap.writing import abandoned
from workflow.records import INCOMPLETE, files_below, record_path

STARTED = time.time()  # when the Snakefile was read


def earlier_jobs() -> list[str]:
    """Slurm jobs that an earlier run of Snakemake in this folder submitted and that have not ended."""
    if shutil.which("squeue") is None:
        return []
    command = ["squeue", "--noheader", "--me", "--format=%i|%Z|%k"]
    try:
        queue = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return []  # no controller answers: nothing of ours can be running
    found = []
    for line in queue.stdout.splitlines():
        job, folder, comment = line.strip().split("|", 2)
        if folder == str(Path.cwd()) and comment.startswith("rule_") and job != os.environ.get("SLURM_JOB_ID"):
            found.append(job)
    return found


def wait_for_earlier_jobs(seconds: float = 5.0) -> None:
    """So that no job is submitted twice: wait until those of a killed submission have ended.

    What they finished is then made again by Snakemake, which was not there to see it; a training resumes from its last epoch.
    """
    announced: list[str] = []
    while jobs := earlier_jobs():
        if jobs != announced:
            announced = jobs
            text = " ".join(jobs)
            print(f"Waiting for jobs of an earlier run that still run: {text} (scancel {text} ends them)", file=sys.stderr)
        time.sleep(seconds)


def remove_leftovers(folder: Path = Path("results"), started: float = STARTED) -> None:
    """Remove what a killed training would have gone on from, beside the models that are there, and files half written.

    Another run of Snakemake may write beside this one: a file that a process holds stays, here or on another machine, and so
    does one that is younger than this run (`started`), unless the process that its name tells has ended.
    """
    # .tmp*: of other programs that write safetensors
    for path in [*files_below(folder, ".*.part", ".tmp*")]:
        if path.is_file() and abandoned(path, started):
            _remove(path)
    for path in [*files_below(folder, "*.resume")]:
        model = path.with_suffix("")
        if model.is_file() and not record_path(str(model), INCOMPLETE).exists():
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # another run removed it, or it is another user's
        path.unlink()
