"""The exact versions that the tests and the results from CPUs were made with: python -m workflow.environment

Writes constraints.txt, the versions installed here, and environment.yml, those of them that the workflow needs. Run it in an
environment of its own, after `pip install -e '.[test]'` and the tests.
"""

import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path("constraints.txt")
ENVIRONMENT = Path("environment.yml")
LOCK_HEADER = """\
# Every version that the tests and the published results from CPUs were run with (those from a GPU: torch 2.11.0, as their
# provenance files say). Made by python -m workflow.environment; used as
#   pip install -c constraints.txt -e '.[workflow]'
"""
ENVIRONMENT_HEADER = """\
# The same versions for conda, made from constraints.txt by python -m workflow.environment. `scap` itself needs no
# installation here: the Snakefile finds it beside itself.
name: scap
channels:
  - conda-forge
dependencies:
  - python={python}
  - pip
  - pip:
"""


def installed() -> dict[str, str]:
    """The version of every package of this environment but scap; of PyTorch without the mark of its build."""
    command = [sys.executable, "-m", "pip", "freeze", "--all", "--exclude", "scap", "--exclude", "pip"]
    freeze = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: version.split("+")[0] for name, version in pins(freeze.stdout).items()}


def pins(text: str) -> dict[str, str]:
    """Versions by package, of lines NAME==VERSION."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonicalize_name(name): version for name, found, version in (line.partition("==") for line in lines) if found}


def needed(project: dict, extra: str) -> set[str]:
    """The packages that scap[extra] needs here, directly or not."""
    found: set[tuple[str, str]] = set()
    waiting = [("scap", ""), ("scap", extra)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in found:
            continue
        found.add((name, wanted))
        lines = of_project(project, wanted) if name == "scap" else requires(name) or []
        for each in (each for each in map(Requirement, lines) if holds(each, wanted)):
            waiting += [(canonicalize_name(each.name), further) for further in ("", *each.extras)]
    return {name for name, _ in found} - {"scap"}


def of_project(project: dict, extra: str) -> list[str]:
    """What pyproject.toml requires, with an extra or without."""
    return project["optional-dependencies"][extra] if extra else project["dependencies"]


def holds(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement concerns this environment."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def environment(project: dict, versions: dict[str, str]) -> str:
    """The text of environment.yml."""
    header = ENVIRONMENT_HEADER.format(python=project["requires-python"].removeprefix(">="))
    return header + "".join(f"      - {name}=={versions[name]}\n" for name in sorted(needed(project, "workflow")))


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    versions = installed()
    LOCK.write_text(LOCK_HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
    ENVIRONMENT.write_text(environment(project, versions))


if __name__ == "__main__":
    main()
