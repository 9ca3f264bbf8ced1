"""What every script shares: logging to terminal and log, one line for a user's error, provenance."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from provenance import write_provenance

from scap.errors import DamagedFile, ScapError

LOG = logging.getLogger("scap")
Report = Callable[[Mapping[str, float]], None]


@contextmanager
def job(snakemake: Any) -> Iterator[Report]:
    """Run the body of a rule; yields a function that reports progress, at most a line every two seconds."""
    name = " ".join([snakemake.rule, *map(str, snakemake.wildcards)])
    handlers = [logging.StreamHandler(), logging.FileHandler(snakemake.log[0], mode="w")]
    logging.basicConfig(level=logging.WARNING, format=f"[{name}] %(message)s", handlers=handlers, force=True)
    LOG.setLevel(logging.INFO)
    start = time.monotonic()
    try:
        yield _reporter()
        seconds = time.monotonic() - start
        write_provenance(snakemake, seconds)
    except ScapError as error:
        LOG.error("error: %s%s", error, _command(error))
        sys.exit(1)
    except Exception:
        LOG.exception("failed")
        sys.exit(1)
    LOG.info("done in %.1f s", seconds)


def _command(error: ScapError) -> str:
    """What makes a damaged result again."""
    made = isinstance(error, DamagedFile) and error.path.startswith("results/")
    return f": snakemake --cores all --force {error.path}" if made else ""


def _reporter(every: float = 2.0) -> Report:
    last = time.monotonic()

    def report(values: Mapping[str, float]) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            LOG.info(", ".join(f"{key} {value:.4g}" for key, value in values.items()))

    return report
