"""What is there is not trained again because a file that it was made from has gone, was moved, or is damaged.

Snakemake plans by files: what a run is about to make counts as new, though it will be the same as before. A cache or a data set
that is missing (deleted, or never stored) and is needed again for one new result would so train every network that once came
from it. Made in a run of its own, it is compared by its content, and what has the same inputs as before stays.

A damaged file has another checksum, by which all that was made of it is planned; and Snakemake deletes what a job has made
before it starts the job, which then refuses the file.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

from scap.errors import DamagedFile
from scap.reading import open_tensors, read_history

MISSING, FOLLOWS = "output files have to be generated", "input files updated by another job"
TRAINED = ("baseline.safetensors", "finetuned.safetensors")


def trained_again(dag: Any) -> str:
    """What is wrong with a plan that trains a network again that is there, for nothing but that files are missing; else ""."""
    planned = set(dag.needrun_jobs())
    again = {job for job in planned if _follows(dag, job) and any(map(_is_trained, job.output))}
    above = {job: set(_above(dag, job, planned)) for job in again}
    again = {job for job in again if all(_follows(dag, each) or _may_be_the_same(dag, each) for each in above[job])}
    if not again:
        return ""
    first = {job for each in again for job in above[each] if _may_be_the_same(dag, job) and not _follows(dag, job)}
    lost, names = min(str(job.output[0]) for job in first), _first_of(str(job.output[0]) for job in again)
    rules = " ".join(sorted({job.rule.name for job in first}))
    problem = "may be made again as it was" if os.path.exists(lost) else "is missing"
    return (
        f"{lost}: {problem}; made in this run, it would train again what is there: {names}. "
        f"First make it, by the same command with --until {rules}"
    )


def made_of_damaged(dag: Any) -> str:
    """What is wrong with a plan that deletes a trained network to train it again from a file that is damaged; else ""."""
    planned = set(dag.needrun_jobs())
    remade = {str(path) for job in planned for path in job.output}
    again = [job for job in planned if any(_is_trained(path) and os.path.exists(path) for path in job.output)]
    for path in sorted({str(path) for job in again for path in job.input if os.path.isfile(path)} - remade):
        try:
            _check(path)
        except DamagedFile as error:
            readers = [job for job in again if path in job.input]
            made_here = any(path in files for files in dag.dependencies[readers[0]].values())
            mend = f"make it again: snakemake --cores all --force {path}" if made_here else "put a sound copy there"
            deleted = _first_of(str(output) for job in readers for output in job.output if _is_trained(output))
            return f"{path}: {error.problem}; this run would delete what was trained from it: {deleted}. First {mend}"
    return ""


def _check(path: str) -> None:
    """DamagedFile where a job would refuse to train from this file."""
    if path.endswith(".safetensors"):
        with open_tensors(path, "numpy", digest=path.startswith("results/data/")):
            return
    if path.endswith("history.csv"):
        read_history(path)


def _first_of(paths: Iterable[str]) -> str:
    names = sorted(paths)
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _is_trained(path: Any) -> bool:
    return str(path).endswith(TRAINED)


def _why(dag: Any, job: Any) -> set[str]:
    return set(dag.reason(job).get_names())


def _follows(dag: Any, job: Any) -> bool:
    """Whether all that the job makes is there, and it is planned for what others make only."""
    return _why(dag, job) == {FOLLOWS} and all(map(os.path.exists, job.output))


def _may_be_the_same(dag: Any, job: Any) -> bool:
    """Whether what a job makes may have been there before: it is missing, or the official files of a data set were moved."""
    return _why(dag, job) == {MISSING} or job.rule.name == "data"


def _above(dag: Any, job: Any, planned: set[Any]) -> Iterator[Any]:
    """The planned jobs that a job waits for, directly or not, each once."""
    waiting, seen = [job], {job}
    while waiting:
        for each in dag.dependencies[waiting.pop()]:
            if each in planned and each not in seen:
                seen.add(each)
                waiting.append(each)
                yield each
