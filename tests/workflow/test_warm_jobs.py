"""Jobs forked from a process that has imported PyTorch: what a job sees, how it ends, and when none is forked."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from snakemake import script
from snakemake.benchmark import BenchmarkRecord

from workflow import warm_jobs
from workflow.warm_jobs import FRESH, Server, WarmScript, environment, keep_warm

NOTE = """
import json, os, pathlib, signal, sys
noted = {"path": sys.path[0], "argv": sys.argv, "name": __name__, "file": __file__, "threads": os.environ["OMP_NUM_THREADS"],
    "own": os.environ.get("OWN"), "process": os.getpid(), "preloaded": "plistlib" in sys.modules, "scap": "scap" in sys.modules,
    "group": os.getpgid(0), "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "cwd": os.getcwd()}
pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(noted))
"""


@pytest.fixture(scope="module")
def server():
    server = Server(3, preloaded=["plistlib", "no_such_module"])
    yield server
    server.end()


@pytest.fixture
def run(server, tmp_path):
    """Run the text of a script; its status."""

    def run(text, **more):
        path = tmp_path / "script.py"
        path.write_text(text)
        return server.run(str(path), environment(3) | {"OWN": "1"}, **more)

    return run


def test_a_job_sees_what_a_python_of_its_own_would(run, tmp_path):
    assert run(NOTE) == 0
    noted = json.loads((tmp_path / "script.py.json").read_text())
    assert noted["preloaded"]
    assert not noted["scap"]
    assert (noted["path"], noted["argv"]) == (str(tmp_path), [str(tmp_path / "script.py")])
    assert (noted["name"], noted["file"]) == ("__main__", str(tmp_path / "script.py"))
    assert (noted["threads"], noted["own"], noted["cwd"]) == ("3", "1", os.getcwd())
    assert noted["process"] != os.getpid()
    assert noted["group"] == os.getpgid(0)  # Ctrl-C and a kill of the group reach it
    assert noted["interrupt"] == (signal.getsignal(signal.SIGINT) is signal.default_int_handler)  # not where nohup ignores it


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('no')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 1),
        ("not python", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import atexit, pathlib, sys; atexit.register(pathlib.Path(sys.argv[0] + '.end').touch)", 0),
    ],
)
def test_the_status_is_that_of_the_script_and_the_next_job_runs(run, tmp_path, text, status):
    assert run(text) == status
    assert (tmp_path / "script.py.end").exists() == ("atexit" in text)
    assert run("") == 0


def test_a_benchmark_measures_the_job(run):
    record = BenchmarkRecord()
    assert run("import time; data = bytearray(50 << 20); time.sleep(1)", record=record) == 0
    assert record.running_time >= 1
    assert 50 < record.max_rss < 500


def test_a_killed_server_is_replaced_and_its_job_ends_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(warm_jobs, "PRELOADED", ())
    monkeypatch.setattr(warm_jobs, "_servers", {})
    monkeypatch.setattr(warm_jobs, "Server", lambda threads: Server(threads, preloaded=()))
    path = tmp_path / "script.py"
    first = warm_jobs.server_for(1)
    path.write_text(f"import os, time; os.kill({first.process.pid}, 9); time.sleep(0.3)")
    assert first.run(str(path), environment(1)) == 0
    assert first.process.wait(10) == -signal.SIGKILL
    assert first.run(str(path), environment(1)) is None  # nobody is there to fork
    path.write_text("raise SystemExit(5)")
    assert warm_jobs.server_for(1).run(str(path), environment(1)) == 5
    assert warm_jobs.server_for(1) is warm_jobs.server_for(1) is not warm_jobs.server_for(2)


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    code = "from workflow.warm_jobs import Server; server = Server(1, ()); print(server.process.pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    number = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    for _ in range(200):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"{number} still runs")


@pytest.mark.parametrize("own", ["conda_env", "container_img", "env_modules", "shadow_dir", "gpu"])
def test_jobs_of_a_gpu_or_an_environment_of_their_own_start_as_usual(own, monkeypatch):
    def never(threads):
        raise AssertionError("forked")

    asked = {"conda_env": None, "container_img": None, "env_modules": None, "shadow_dir": None, "resources": {}}
    asked |= {"resources": {"gpu": 1}} if own == "gpu" else {own: "one"}
    job, usual = WarmScript.__new__(WarmScript), []
    vars(job).update(asked, threads=1, bench_record=None)
    monkeypatch.setattr(warm_jobs, "server_for", never)
    monkeypatch.setattr(script.PythonScript, "execute_script", lambda self, fname, edit: usual.append(fname))
    job.execute_script("script.py")
    assert usual == ["script.py"]


@pytest.mark.parametrize(
    ("local", "main", "fresh"), [(True, True, False), (False, True, False), (True, False, False), (True, True, True)]
)
def test_jobs_are_forked_where_the_machine_is_one(monkeypatch, local, main, fresh):
    """Not on a cluster, neither by what submits (`local`) nor within a submission (`main`), and not where the user says so."""
    monkeypatch.setattr(warm_jobs.sys, "platform", "linux")
    original = script.PythonScript
    monkeypatch.setattr(script, "PythonScript", original)
    monkeypatch.delenv(FRESH, raising=False)
    if fresh:
        monkeypatch.setenv(FRESH, "1")
    keep_warm(SimpleNamespace(local_exec=local, is_main_process=main))
    assert script.PythonScript is (WarmScript if (local, main, fresh) == (True, True, False) else original)
