"""What a run prints: bars or few lines, one line a failure, tables and commands at the end."""

import io
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from workflow import display as module
from workflow.display import QUIET_JOBS, Bars, Display, Job, Run, show_run
from workflow.summary import closing, failures

COUNTS = {"data": 1, "spectrum": 2, "total": 3}


def record(event: LogEvent | None = None, message: str = "", level: int = logging.INFO, **values: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": level, "event": event, **values})


def started(number: int, rule: str, *logs: str, **wildcards: str) -> logging.LogRecord:
    return record(LogEvent.JOB_INFO, jobid=number, rule_name=rule, wildcards=wildcards, log=list(logs))


def ended(number: int) -> logging.LogRecord:
    return record(LogEvent.JOB_FINISHED, job_id=number)


def broken(number: int) -> logging.LogRecord:
    return record(LogEvent.JOB_ERROR, level=logging.ERROR, jobid=number)


@pytest.fixture
def shown(monkeypatch, capsys):
    """A display of a run without a terminal that has begun."""
    monkeypatch.setitem(os.environ, QUIET_JOBS, "")
    display = Display(SimpleNamespace(local_exec=True))
    display.emit(record(LogEvent.RUN_INFO, stats=COUNTS))
    yield display
    display.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split("] ", 1)[-1] for line in capsys.readouterr().err.splitlines()]


def test_of_many_jobs_every_tenth_part_is_told(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, QUIET_JOBS, "")
    display = Display(SimpleNamespace(local_exec=True))
    display.emit(record(LogEvent.RUN_INFO, stats={"prune": 100, "evaluate": 100, "total": 200}))
    for number in range(100):
        display.emit(started(number, "prune"))
        display.emit(ended(number))
    display.close()
    assert lines(capsys) == [
        "200 jobs: prune 100, evaluate 100",
        *(f"{done} of 200 jobs ({done // 2}%) done" for done in (20, 40, 60, 80)),
        "100 of 200 jobs (50%) done: prune (100 jobs)",
    ]


def test_without_a_terminal_a_rule_is_told_when_it_is_through(shown, capsys):
    for each in (started(1, "data"), ended(1), started(2, "spectrum", layer="a"), started(3, "spectrum", layer="b"), ended(3)):
        shown.emit(each)
    assert lines(capsys) == ["3 jobs: data 1, spectrum 2", "1 of 3 jobs (33%) done: data"]
    shown.emit(ended(2))
    assert lines(capsys) == ["3 of 3 jobs (100%) done: spectrum (2 jobs)"]
    assert os.environ[QUIET_JOBS]


def test_a_long_job_is_told_from_time_to_time(shown, capsys, tmp_path):
    log = tmp_path / "log"
    log.write_text("[baseline tiny 0] epoch 3 of 8, loss 1.2, 0:42 left\n")
    shown.emit(started(1, "baseline", str(log), network="tiny", seed="0"))
    view = shown.view
    view.status()
    assert lines(capsys) == ["3 jobs: data 1, spectrum 2"]
    view.pause = view.last = 0
    view.status()
    assert lines(capsys) == ["0 of 3 jobs (0%) done; baseline tiny 0: epoch 3 of 8, loss 1.2, 0:42 left"]
    pauses = []
    for _ in range(12):
        view.last, view.pause = -module.LONGEST_STATUS * 2, view.pause or module.FIRST_STATUS
        view.status()
        pauses.append(view.pause)
    assert pauses[:3] == [120, 240, 480]
    assert pauses[-1] == module.LONGEST_STATUS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data digits] error: data: damaged; fetch it again\n", "data: damaged; fetch it again"),
        ("[data] failed\nTraceback (most recent call last):\n  File x\nValueError: no\n", "ValueError: no"),
        ("", "said nothing in its log"),
        (None, "said nothing in its log"),
    ],
)
def test_a_failed_job_is_one_line_with_its_log(shown, capsys, tmp_path, text, message):
    log = tmp_path / "data.log"
    if text is not None:
        log.write_text(text)
    shown.emit(started(1, "data", str(log), dataset="digits"))
    for _ in range(2):  # Snakemake says it twice, and more
        shown.emit(broken(1))
        shown.emit(record(LogEvent.ERROR, "RuleException:\nCalledProcessError in file …", logging.ERROR))
        shown.emit(record(None, "Exiting because a job execution failed. Look below for error messages", logging.ERROR))
    assert lines(capsys)[1:] == [f"failed: data digits: {message} (log: {log})"]
    text = failures(shown)
    assert f"data digits: {message}\n    log: {log}" in text
    assert "1 failed; 0 of 3 jobs (0%) done" in text


def test_a_job_that_is_tried_again_with_success_has_not_failed(shown, capsys):
    for each in (started(1, "data"), broken(1), started(1, "data"), ended(1)):
        shown.emit(each)
    assert lines(capsys)[-1] == "1 of 3 jobs (33%) done: data"
    assert failures(shown) == ""


def test_jobs_of_a_group_fail_one_by_one(shown, capsys):
    shown.emit(started(1, "spectrum", layer="a"))
    shown.emit(started(2, "spectrum", layer="b"))
    error = {"job_error_info": [{"jobid": 1}, {"jobid": 2}]}
    shown.emit(record(LogEvent.GROUP_ERROR, level=logging.ERROR, **error))
    assert [line.split(":")[1].strip() for line in lines(capsys)[1:]] == ["spectrum a", "spectrum b"]


def test_what_else_goes_wrong_is_told(shown, capsys):
    shown.emit(record(None, "MissingOutputException: x was not written", logging.ERROR))
    shown.emit(record(None, "Select jobs to execute..."))
    assert lines(capsys)[1:] == ["MissingOutputException: x was not written"]


def test_a_fault_of_the_display_does_not_end_the_run(shown, capsys):
    shown.emit(record(LogEvent.JOB_INFO))  # without the values that it has
    assert "Traceback" in capsys.readouterr().err


def test_in_a_terminal_there_are_bars_with_what_the_jobs_say(tmp_path):
    log, output = tmp_path / "log", io.StringIO()
    log.write_text("[spectrum a] images 64, total 256\n")
    run = Run({"data": 1, "spectrum": 2})
    bars = Bars(run, Console(file=output, force_terminal=True, width=120))
    for number, rule in ((1, "data"), (2, "spectrum"), (3, "spectrum")):
        run.jobs[number] = Job(rule, (), (str(log),))
        bars.began(run.jobs[number])
    for number in (1, 2):
        job = run.jobs.pop(number)
        run.done[job.rule] += 1
        bars.finished(job)
    bars.print("failed: something [else]")
    bars.stop()
    text = output.getvalue()
    for part in ("data", "1/1", "spectrum", "1/2", "whole", "2/3", "images 64, total 256", "failed: something [else]"):
        assert part in text


@pytest.mark.parametrize(
    ("asked", "follows"),
    [
        ({}, True),
        ({"quiet": {Quietness.HOST}}, True),
        ({"quiet": {Quietness.RULES}}, False),
        ({"dryrun": True}, False),
        ({"verbose": True}, False),
        ({"printshellcmds": True}, False),
    ],
)
def test_another_output_can_be_asked_for(monkeypatch, asked, follows):
    logger, own = logging.getLogger("snakemake.logging"), logging.StreamHandler(io.StringIO())
    own.name = module.STREAM
    monkeypatch.setattr(logger, "handlers", [own])
    settings = SimpleNamespace(**{"dryrun": False, "verbose": False, "printshellcmds": False, "quiet": set()} | asked)
    display = show_run(SimpleNamespace(output_settings=settings, local_exec=False))
    assert (display in logger.handlers) == follows
    logger.handlers[0].handle(record(LogEvent.RUN_INFO, stats=COUNTS))
    assert (own.level > logging.CRITICAL) == follows
    display.close()


def test_a_logger_of_the_users_own_stays(monkeypatch):
    monkeypatch.setattr(logging.getLogger("snakemake.logging"), "handlers", [logging.NullHandler()])
    settings = SimpleNamespace(dryrun=False, verbose=False, printshellcmds=False, quiet=None)
    assert show_run(SimpleNamespace(output_settings=settings)) not in logging.getLogger("snakemake.logging").handlers


CONFIG = {
    "targets": {"all": ["quick"], "token": ["token"], "paper": ["quick", "token"]},
    "comparisons": {"quick": {"tables": ["runs"], "figures": ["tradeoff"]}, "token": {"tables": ["runs"], "figures": []}},
}
RUNS = {
    **{"network": "tiny", "seed": 0, "widths": ["own", "scap"], "size": "threshold-0.5", "schedule": "short"},
    **{"criterion": ["scap", "l1"], "top1_baseline": 93.44, "top1_pruned": [50.0, 40.0], "top1": [91.5, 91.25]},
    **{"macs_removed": [0.9011, 0.9], "params_removed": 0.963},
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("results/tables/quick.csv", "results/figures/quick/tradeoff.png"):
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()
    pd.DataFrame(RUNS).to_csv("results/tables/quick.csv", index=False)


TABLE = """\
results/tables/quick.csv: network tiny, seed 0, size threshold-0.5, schedule short, baseline 93.44 %
criterion widths FLOPs removed parameters removed top-1 pruned   top-1
     scap    own        90.11%             96.30%      50.00 % 91.50 %
       l1   scap        90.00%             96.30%      40.00 % 91.25 %
"""


@pytest.mark.parametrize(
    "targets", [[], ["all"], ["paper"], ["results/tables/quick.csv"], ["results/figures/quick/tradeoff.png"]]
)
def test_a_run_ends_with_its_table_and_where_the_rest_is(made, targets):
    text = closing(CONFIG, targets)
    assert TABLE in text
    assert "Figures: results/figures/quick/ (tradeoff; PNG and PDF)" in text
    commands = [line for line in text.splitlines() if line.startswith("  snakemake ")]
    assert len(commands) == 2
    assert ("-- paper" in commands[0]) == (targets == ["paper"])
    assert "token" in commands[1]


def test_a_long_table_is_cut(made):
    pd.concat([pd.DataFrame(RUNS)] * 20).to_csv("results/tables/quick.csv", index=False)
    assert "… and 20 more rows: results/tables/quick.csv" in closing(CONFIG, [])


def test_where_there_is_no_other_target_the_costs_are_next(made):
    alone = CONFIG | {"targets": {"all": ["quick"]}}
    assert closing(alone, []).splitlines()[-1].startswith("  python -m workflow.costs ")


def test_files_that_were_asked_for_are_named(made):
    Path("a.json").touch()
    assert "Made: a.json\n" in closing(CONFIG, ["a.json"])


DATA = "results/data/digits.safetensors"


def test_a_run_of_snakemake_prints_few_lines_and_keeps_the_whole_log(new_project):
    project = new_project(None)
    printed = project.snakemake(DATA)
    assert "1 of 1 jobs (100%) done: data" in printed
    assert f"Made: {DATA}" in printed
    assert "rule data:" not in printed
    assert len(printed.splitlines()) < 20
    (log,) = (project / ".snakemake/log").iterdir()
    assert "rule data:" in log.read_text()
    assert "Nothing to be done" in project.snakemake(DATA)
    assert "rule data:" in project.snakemake(DATA, "--dry-run", "--force")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'raise __import__("scap").ScapError("the files are damaged; fetch them again")',
            "the files are damaged; fetch them again",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_failed_run_ends_with_one_message_and_its_log(new_project, line, message):
    project = new_project(None)
    with project.edited("workflow/scripts/data.py", "    save_tensors(", f"    {line}\n    save_tensors("):
        printed = project.snakemake(DATA, succeeds=False)
    *_, summary, job, log = printed.rstrip().splitlines()
    assert summary.startswith("1 failed; 0 of 1 jobs (0%) done")
    assert (job.strip(), log.strip()) == (f"data digits: {message}", "log: logs/data/digits.log")
    for noise in ("Traceback", "CalledProcessError", "Exiting because", "At least one job", "rule data"):
        assert noise not in printed
