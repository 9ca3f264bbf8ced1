"""What made a result: a small JSON beside it. Information for people and for `workflow.records`, never a reason to rerun."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from scap.writing import write_json

SUFFIX = ".provenance.json"
PACKAGES = ("scap", "torch", "snakemake")


def write_provenance(snakemake: Any, seconds: float) -> None:
    """Beside every output below results/: rule, wildcards (the seed among them), configuration, code, versions, device."""
    made = {
        "rule": snakemake.rule,
        "wildcards": dict(snakemake.wildcards.items()),
        "config": dict(snakemake.params.items()),
        "code": code_state(),
        "versions": {"python": platform.python_version(), **versions()},
        "device": device(snakemake),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(seconds, 3),
    }
    for output in snakemake.output:
        if output.startswith("results/"):
            write_json(output + SUFFIX, {"output": output, **made}, indent=1)


def code_state() -> dict[str, Any]:
    """The commit that is checked out, and whether tracked files here differ, results left out; nulls without a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def versions() -> dict[str, str | None]:
    """Versions of what computed the result."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def device(snakemake: Any) -> str:
    """The GPU where the job used one, else the processor and its threads."""
    torch = sys.modules.get("torch")
    if torch is not None and snakemake.resources.get("gpu", 0) and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.processor() or platform.machine()}, {snakemake.threads} of {os.cpu_count()} cores"
