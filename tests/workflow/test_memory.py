"""Jobs keep the memory that they free: fewer pages for the system to clear."""

import os
import platform
import subprocess
import sys

import pytest

from workflow.memory import TUNABLES, keep_memory

FREE_AND_ASK_AGAIN = """
import resource
for _ in range(20):
    block = bytearray(64 * 2**20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setenv(TUNABLES, "")
    monkeypatch.delenv(TUNABLES)


def faults() -> int:
    """Pages that a process is given which asks twenty times for the same 64 MiB."""
    return int(subprocess.run([sys.executable, "-c", FREE_AND_ASK_AGAIN], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc looks at it")
def test_a_process_is_not_given_the_same_memory_again_and_again():
    before = faults()
    keep_memory()
    assert faults() < before / 4


def test_tunables_of_the_user_stay(monkeypatch):
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=1")
    keep_memory()
    assert os.environ[TUNABLES] == "glibc.malloc.check=1"


def test_jobs_are_told(new_project):
    project = new_project()
    noting = f"import os\nopen(os.environ['NOTES'] + '/told', 'a').write(os.environ.get({TUNABLES!r}, '') + chr(10))\n"
    (project / "hook/sitecustomize.py").write_text(noting)
    project.snakemake("results/data/digits.safetensors")
    assert "glibc.malloc.hugetlb=1:" in (project / "notes/told").read_text()
