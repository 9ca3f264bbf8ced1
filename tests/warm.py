"""Snakemake for copies of the project, forked from a process that has imported it: an import for each run takes seconds.

As its jobs are (workflow/warm_jobs.py): a process of its own in the copy, whose code it imports.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from workflow.warm_jobs import Server

# What Snakemake, its plugins and the Snakefile import of other packages.
PRELOADED = ("snakemake.cli", "snakemake.api", "jsonschema", "pandas", "rich.progress", "rich.table", "yaml")
RUN = """
import os, runpy, sys

os.setsid()
os.chdir({folder!r})
printed = os.open({printed!r}, os.O_WRONLY | os.O_CREAT, 0o600)
os.dup2(printed, 1)
os.dup2(printed, 2)
sys.path[0] = {folder!r}
sys.argv[1:] = {arguments!r}
runpy.run_module("snakemake", run_name="__main__", alter_sys=True)
"""


@cache
def server() -> Server:
    """Started once in each process of pytest-xdist, which it ends with."""
    return Server(1, PRELOADED)


def snakemake(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The status of `python -m snakemake ARGUMENTS` in a folder, and what it printed."""
    with TemporaryDirectory() as place:
        script, printed = Path(place, "run.py"), Path(place, "printed")
        script.write_text(RUN.format(folder=str(folder), printed=str(printed), arguments=list(arguments)))
        status = server().run(str(script), environment)
        assert status is not None, "the process to fork from has ended"
        return status, printed.read_text()
