"""Notes, when a job ends, which lines begin functions of the project that it has called; Python imports it as sitecustomize.

From the import of `job` on, as the scripts import PyTorch before, and not while modules are imported.
"""

import atexit
import json
import os
import pathlib
import sys
import threading

FOLDER = os.getcwd()
called = {}


class Start:
    def find_spec(name, path=None, target=None):
        if name == "job":
            threading.setprofile(profile)
            sys.setprofile(profile)


def profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(FOLDER) and id(code) not in called and not importing(frame):
        called[id(code)] = code


def importing(frame):
    while frame is not None:
        code = frame.f_code
        inside = code.co_filename.startswith(FOLDER) and not code.co_filename.endswith("/fork_server.py")
        if code.co_name == "<module>" and inside and "/.snakemake/" not in code.co_filename:
            return True
        frame = frame.f_back
    return False


def note():
    job = getattr(sys.modules["__main__"], "snakemake", None)
    if hasattr(job, "rule"):
        script = "workflow/scripts/" + pathlib.Path(sys.argv[0]).name.split(".", 1)[1]  # snakemake runs a copy of it
        lines = [(os.path.relpath(code.co_filename), code.co_firstlineno) for code in list(called.values())]
        called_at = [(file, line) for file, line in lines if file.startswith(("scap/", "workflow/"))]
        note = {"rule": job.rule, "script": script, "wildcards": dict(job.wildcards.items()), "called": called_at}
        pathlib.Path(os.environ["NOTES"], f"{os.getpid()}.json").write_text(json.dumps(note))


def begin():
    atexit.register(note)
    sys.meta_path.insert(0, Start)


if "/.snakemake/scripts/" in sys.orig_argv[-1]:
    begin()
elif any(part.endswith("/fork_server.py") for part in sys.orig_argv):
    os.register_at_fork(after_in_child=begin)
