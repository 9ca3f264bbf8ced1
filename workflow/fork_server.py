"""A Python that has imported PyTorch, or whatever its arguments name, and forks for each job. workflow/warm_jobs.py starts it.

Over standard input comes a socket for each job. Through it the number of the job's process goes out, one line comes in (the
script and its environment), and in the end the job's status goes out. The server imports nothing of the project: jobs read its
code as it is then.
"""

import atexit
import gc
import json
import os
import signal
import socket
import sys
import traceback
import types
from contextlib import suppress
from importlib import import_module

INTERRUPT = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the jobs; Snakemake waits for them


def next_job() -> socket.socket:
    """Returns in the process of the next job; the server itself ends when Snakemake has."""
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, forget)
    while True:
        _, found, _, _ = socket.recv_fds(requests, 1, 1)
        if not found:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return wait_for_job(socket.socket(fileno=found[0]))
        os.close(found[0])


def forget(*_: object) -> None:
    """Let go of the processes that waited for jobs which have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def wait_for_job(connection: socket.socket) -> socket.socket:
    """Forks once more: the child returns and becomes the job, its parent waits and tells how it ended."""
    job = os.fork()
    if job == 0:
        signal.signal(signal.SIGINT, INTERRUPT)
        return connection
    with suppress(OSError):  # Snakemake was killed: the job continues, as it would without a server
        connection.sendall(f"{job}\n".encode())
        _, status = os.waitpid(job, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def become(script: str, environment: dict[str, str]) -> types.ModuleType:
    """Arguments, environment, search path and main module of `python SCRIPT`."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script]
    sys.path.insert(0, os.path.dirname(script))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = script
    return main


def run(script: str, main: types.ModuleType) -> int:
    """Run the script; the status with which `python SCRIPT` would end."""
    try:
        with open(script, "rb") as source:
            exec(compile(source.read(), script, "exec"), vars(main))
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


for name in sys.argv[1:]:
    with suppress(ImportError):
        import_module(name)
gc.freeze()  # what is shared stays shared
connection = next_job()
with connection.makefile() as request:
    script, environment = json.loads(request.readline())
status = run(script, become(script, environment))
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # taking all modules apart would cost half a second, and a copy of the memory that is shared
