"""What is there is not trained again because a file that it was made from has gone.

Snakemake plans by files: what a run is about to make counts as new, though it will be the same as before. A cache or a data set
that is missing (deleted, or never stored) and is needed again for one new result would so train every network that once came
from it. Made in a run of its own, it is compared by its content, and what has the same inputs as before stays.
"""

import os
from collections.abc import Iterator
from typing import Any

MISSING, FOLLOWS = "output files have to be generated", "input files updated by another job"
TRAINED = ("baseline.safetensors", "finetuned.safetensors")


def trained_again(dag: Any) -> str:
    """What is wrong with a plan that trains a network again that is there, for nothing but that files are missing; else ""."""
    planned = set(dag.needrun_jobs())
    again = {job for job in planned if _follows(dag, job) and any(map(_is_trained, job.output))}
    above = {job: set(_above(dag, job, planned)) for job in again}
    again = {job for job in again if all(_follows(dag, each) or _why(dag, each) == {MISSING} for each in above[job])}
    if not again:
        return ""
    missing = {job for each in again for job in above[each] if _why(dag, job) == {MISSING}}
    lost, names = (sorted(str(job.output[0]) for job in jobs) for jobs in (missing, again))
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    rules = " ".join(sorted({job.rule.name for job in missing}))
    return (
        f"{lost[0]}: is missing; made in this run, it would train again what is there: {names[0]}{others}. "
        f"First make what is missing, by the same command with --until {rules}"
    )


def _is_trained(path: Any) -> bool:
    return str(path).endswith(TRAINED)


def _why(dag: Any, job: Any) -> set[str]:
    return set(dag.reason(job).get_names())


def _follows(dag: Any, job: Any) -> bool:
    """Whether all that the job makes is there, and it is planned for what others make only."""
    return _why(dag, job) == {FOLLOWS} and all(map(os.path.exists, job.output))


def _above(dag: Any, job: Any, planned: set[Any]) -> Iterator[Any]:
    """The planned jobs that a job waits for, directly or not, each once."""
    waiting, seen = [job], {job}
    while waiting:
        for each in dag.dependencies[waiting.pop()]:
            if each in planned and each not in seen:
                seen.add(each)
                waiting.append(each)
                yield each
