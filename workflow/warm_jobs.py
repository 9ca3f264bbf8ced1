"""Jobs that need not import PyTorch: on one machine, each is forked from a process that has (workflow/fork_server.py).

A job stays a process of its own, with its log, its benchmark, its threads and its end. Jobs start as usual on a cluster, on a
GPU (CUDA does not survive a fork), in environments of their own, on other systems than Linux, where the server does not come
up, and where SCAP_FRESH_JOBS is set.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from snakemake import script
from snakemake.benchmark import BenchmarkRecord, benchmarked

FRESH = "SCAP_FRESH_JOBS"
SERVER = Path(__file__).with_name("fork_server.py")
PRELOADED = (
    "torch",
    "torch._dynamo",  # PyTorch imports it at the first step of an optimiser, and for networks without memory
    "safetensors.torch",
    "pandas",
    "matplotlib.figure",
    "snakemake.iocontainers",
    "snakemake.logging",
)
LIBRARIES = ("OMP", "GOTO", "OPENBLAS", "MKL", "VECLIB", "NUMEXPR")
THREADS = [f"{library}_{'MAXIMUM' if library == 'VECLIB' else 'NUM'}_THREADS" for library in LIBRARIES]


class Server:
    """A process that has imported what jobs import, and forks for each of them; it ends with this one.

    OpenMP and BLAS count their threads when they are loaded, so there is a server for each number of threads.
    """

    def __init__(self, threads: int, preloaded: Sequence[str] = PRELOADED) -> None:
        self.channel, theirs = socket.socketpair()
        # -P: the modules of workflow/ must not take the place of Python's own, such as `code`.
        command = [sys.executable, "-P", str(SERVER), *preloaded]
        with theirs:
            self.process = subprocess.Popen(command, stdin=theirs, env=environment(threads))
        atexit.register(self.end)

    def end(self) -> None:
        """Nothing more comes; a job that still runs is not waited for."""
        self.channel.close()
        self.process.wait()

    def run(self, path: str, settings: Mapping[str, str], record: BenchmarkRecord | None = None) -> int | None:
        """Run a script in a process of its own: its status, 1 where nobody tells; None where no process could be had."""
        ours, theirs = socket.socketpair()
        with ours, ours.makefile("rw") as talk:
            try:
                with theirs:
                    socket.send_fds(self.channel, [b"."], [theirs.fileno()])
                process = talk.readline()
            except OSError:
                return None
            if not process:
                return None
            with benchmarked(int(process), record) if record else nullcontext():
                print(json.dumps([path, dict(settings)]), file=talk, flush=True)
                return int(talk.readline() or 1)


def environment(threads: int, temporary: str | None = None) -> dict[str, str]:
    """The environment that Snakemake gives to a job."""
    folders = dict.fromkeys(("TMPDIR", "TMP", "TEMPDIR", "TEMP"), temporary) if temporary else {}
    return dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | folders


_servers: dict[int, Server] = {}
_lock = threading.Lock()


def server_for(threads: int) -> Server:
    """The server of a number of threads, started when it is first asked for."""
    with _lock:
        if threads not in _servers or _servers[threads].process.poll() is not None:
            _servers[threads] = Server(threads)
        return _servers[threads]


class WarmScript(script.PythonScript):
    """A Python script of a rule, forked where it can be."""

    def execute_script(self, fname: str, edit: bool = False) -> None:
        """Run it; CalledProcessError where it fails, as without a server."""
        own = (self.conda_env, self.container_img, self.env_modules, self.shadow_dir, self.resources.get("gpu", 0))
        status = None
        if not any(own):
            settings = environment(self.threads, self.resources.get("tmpdir"))
            status = server_for(self.threads).run(fname, settings, self.bench_record)
        if status is None:
            super().execute_script(fname, edit)
        elif status:
            raise subprocess.CalledProcessError(status, [sys.executable, fname])


def keep_warm(workflow: Any) -> None:
    """Fork the scripts of this workflow; called when the Snakefile is read."""
    if sys.platform == "linux" and workflow.local_exec and workflow.is_main_process and FRESH not in os.environ:
        script.PythonScript = WarmScript
