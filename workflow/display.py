"""A run that shows itself: bars in a terminal, few lines elsewhere, one line a failure. The whole log is in .snakemake/log.

A handler of Snakemake's logger. It takes the place of Snakemake's own lines once jobs are to run, and not for a dry run nor
where the user asks for another output (--verbose, --printshellcmds, --quiet, --logger).
"""

import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

STREAM = "DefaultStreamHandler"  # Snakemake's own
QUIET_JOBS = "SCAP_QUIET_JOBS"  # tells the jobs (workflow/scripts/job.py) to write to their logs alone
# What Snakemake says beside the failure of a job, which has its own line here.
FOLLOW_UPS = ("CalledProcessError", "At least one job did not complete", "Exiting because a job execution failed")
MANY = 100  # jobs of a run of which every tenth part is told
FIRST_STATUS, LONGEST_STATUS = 60.0, 1800.0  # seconds between lines that tell how a long job fares; each pause doubles


@dataclass(frozen=True)
class Job:
    """A job that runs, or failed."""

    rule: str
    wildcards: tuple[str, ...]
    logs: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.rule, *self.wildcards))

    def last_line(self) -> str:
        """What it said last."""
        return next(reversed(_lines(self.logs)), "")

    def message(self) -> str:
        """Why it failed: its error line, else its last one."""
        lines = _lines(self.logs)
        errors = [line.split("error: ", 1)[1] for line in lines if line.startswith("error: ")]
        return next(reversed(errors or lines), "said nothing in its log")


def _lines(paths: Iterable[str], size: int = 8192) -> list[str]:
    """The last lines of log files, without the name of the job."""
    texts = []
    for path in map(Path, paths):
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - size))
                texts.append(file.read().decode(errors="replace"))
    lines = "\n".join(texts).splitlines()
    return [line.split("] ", 1)[-1].strip() if line.startswith("[") else line.strip() for line in lines if line.strip()]


@dataclass
class Run:
    """What runs, what is done, what failed."""

    counts: dict[str, int] = field(default_factory=dict)  # jobs of each rule
    done: Counter[str] = field(default_factory=Counter)
    jobs: dict[int, Job] = field(default_factory=dict)  # that run
    failed: dict[int, Job] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def progress(self) -> str:
        done = self.done.total()
        return f"{done} of {self.total} jobs ({100 * done // max(1, self.total)}%) done"


class Lines:
    """Without a terminal: a line when a rule is through, when a tenth of many jobs is done, and while one takes long."""

    def __init__(self, run: Run) -> None:
        self.run, self.pause, self.last, self.ended = run, FIRST_STATUS, time.monotonic(), threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()
        counts = ", ".join(f"{rule} {count}" for rule, count in run.counts.items())
        self.print(f"{run.total} job{'s' if run.total > 1 else ''}: {counts}")

    def print(self, text: str) -> None:
        self.last = time.monotonic()
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def finished(self, job: Job) -> None:
        done, total = self.run.done.total(), self.run.total
        if self.run.done[job.rule] == self.run.counts.get(job.rule):
            count = self.run.counts[job.rule]
            self.print(f"{self.run.progress()}: {job.rule}" + (f" ({count} jobs)" if count > 1 else ""))
        elif total >= MANY and 10 * done // total > 10 * (done - 1) // total:
            self.print(self.run.progress())

    def began(self, job: Job) -> None:
        """Jobs that begin are not told."""

    def watch(self, every: float = 2.0) -> None:
        while not self.ended.wait(every):
            self.status()

    def status(self) -> None:
        """A line about the job that runs longest, where none was printed for a while."""
        job = next(iter(self.run.jobs.copy().values()), None)
        if job is not None and time.monotonic() - self.last > self.pause:
            self.pause = min(2 * self.pause, LONGEST_STATUS)
            self.print(f"{self.run.progress()}; {job}: {job.last_line() or 'runs'}")

    def stop(self) -> None:
        self.ended.set()


class Said(ProgressColumn):
    """What the oldest running job of a rule said last: epoch, loss, time left."""

    max_refresh = 1.0

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def render(self, task: Task) -> Text:
        lines = (job.last_line() for job in self.run.jobs.copy().values() if job.rule == task.description)
        return Text(next(lines, ""), style="dim", overflow="ellipsis", no_wrap=True)


class Bars:
    """In a terminal: a bar for each rule that has begun, and one for the whole."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run = run
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), Said(run))
        self.bars = Progress(*columns, console=console, refresh_per_second=4, transient=True)
        self.tasks = {rule: self.bars.add_task(rule, start=False, visible=False, total=n) for rule, n in run.counts.items()}
        self.whole = self.bars.add_task("[bold]whole", total=run.total)
        self.bars.start()

    def print(self, text: str) -> None:
        self.bars.console.print(Text(text))

    def began(self, job: Job) -> None:
        if job.rule in self.tasks and self.run.done[job.rule] == 0:
            self.bars.start_task(self.tasks[job.rule])
            self.bars.update(self.tasks[job.rule], visible=True)

    def finished(self, job: Job) -> None:
        self.bars.update(self.whole, completed=self.run.done.total())
        if job.rule in self.tasks:
            self.bars.update(self.tasks[job.rule], completed=self.run.done[job.rule])

    def stop(self) -> None:
        self.bars.refresh()
        self.bars.stop()


class Display(logging.Handler):
    """Follows a run by what Snakemake logs."""

    def __init__(self, workflow: Any) -> None:
        super().__init__()
        self.workflow, self.run = workflow, Run()
        self.view: Lines | Bars | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """One record; a fault of the display never ends the run."""
        try:
            event = getattr(record, "event", None)
            if event == LogEvent.RUN_INFO and self.view is None:
                self.begin({rule: n for rule, n in vars(record)["stats"].items() if rule != "total"})
            elif self.view is not None:
                self.show(event, record, self.view)
        except Exception:
            self.handleError(record)

    def begin(self, counts: dict[str, int]) -> None:
        """Take the place of Snakemake's own lines."""
        for handler in logging.getLogger("snakemake.logging").handlers:
            if handler.name == STREAM:
                handler.setLevel(logging.CRITICAL + 1)
        if self.workflow.local_exec:  # a cluster keeps what its jobs print
            os.environ[QUIET_JOBS] = "1"
        self.run = Run(counts)
        self.view = Bars(self.run, Console(stderr=True)) if sys.stderr.isatty() else Lines(self.run)

    def show(self, event: LogEvent | None, record: logging.LogRecord, view: Lines | Bars) -> None:
        """One record of a run that has begun."""
        values: dict[str, Any] = vars(record)
        if event == LogEvent.JOB_INFO:
            job = Job(
                values["rule_name"], tuple(map(str, dict(values["wildcards"] or {}).values())), tuple(values["log"] or ())
            )
            self.run.jobs[values["jobid"]] = job
            view.began(job)
        elif event == LogEvent.JOB_FINISHED:
            self.run.failed.pop(values["job_id"], None)  # it was tried again
            if job := self.run.jobs.pop(values["job_id"], None):
                self.run.done[job.rule] += 1
                view.finished(job)
        elif event == LogEvent.JOB_ERROR:
            self.fail(values["jobid"], view)
        elif event == LogEvent.GROUP_ERROR:
            for info in values["job_error_info"]:
                self.fail(info["jobid"], view)
        elif record.levelno >= logging.WARNING and not any(text in record.getMessage() for text in FOLLOW_UPS):
            view.print(record.getMessage())

    def fail(self, number: int, view: Lines | Bars) -> None:
        """A job failed: its message, and where its log is. Snakemake says so twice."""
        job = self.run.jobs.pop(number, None)
        if job is not None:
            self.run.failed[number] = job
            view.print(f"failed: {job}: {job.message()} (log: {', '.join(job.logs) or 'none'})")

    def close(self) -> None:
        self.stop()
        super().close()

    def stop(self) -> None:
        """Nothing more is shown."""
        if self.view is not None:
            self.view.stop()


def show_run(workflow: Any) -> Display:
    """Follow the run of a workflow, where nothing else was asked for; called when the Snakefile is read."""
    settings, display = workflow.output_settings, Display(workflow)
    asked = settings.dryrun or settings.verbose or settings.printshellcmds or set(settings.quiet or ()) - {Quietness.HOST}
    handlers = logging.getLogger("snakemake.logging").handlers
    if not asked and any(handler.name == STREAM for handler in handlers):
        handlers.insert(0, display)  # before Snakemake's own, whose place it takes
    return display
