"""How the jobs get their memory from glibc, which reads it when a process starts (benchmarks/pages.py shows what it brings)."""

import os

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # ask for pages of 2 MiB where the system gives them on request
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"  # 1 TiB: what is freed is used again


def keep_memory() -> None:
    """Processes that start from here ask for huge pages and keep what they free; other C libraries do not look at this.

    A training frees its tensors at every step and asks for them again; fresh pages each time cost it a tenth to a fifth.
    Whoever has set tunables of glibc keeps them.
    """
    os.environ.setdefault(TUNABLES, f"{HUGE_PAGES}:{KEEP}")
