"""What every script shares: logging to terminal and log, one line for a user's error, provenance."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from provenance import write_provenance

from scap.errors import DamagedFile, ScapError

LOG = logging.getLogger("scap")
QUIET = "SCAP_QUIET_JOBS"  # set where workflow/display.py shows the run, from the logs of its jobs
Report = Callable[[Mapping[str, float]], None]


@contextmanager
def job(snakemake: Any) -> Iterator[Report]:
    """Run the body of a rule; yields a function that reports progress, at most a line every two seconds."""
    name = " ".join([snakemake.rule, *map(str, snakemake.wildcards)])
    handlers: list[logging.Handler] = [logging.FileHandler(snakemake.log[0], mode="w")]
    if QUIET not in os.environ:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.WARNING, format=f"[{name}] %(message)s", handlers=handlers, force=True)
    LOG.setLevel(logging.INFO)
    start = time.monotonic()
    try:
        yield _reporter(_epochs(dict(snakemake.params.items())))
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


def _epochs(params: Mapping[str, Any]) -> int | None:
    """How many epochs a job's settings ask for."""
    settings = params.get("cfg")
    parts = [settings, *settings.values()] if isinstance(settings, Mapping) else []
    return next((part["epochs"] for part in parts if isinstance(part, Mapping) and "epochs" in part), None)


def _reporter(epochs: int | None, every: float = 2.0) -> Report:
    """Logs what is reported; of epochs also how many there are and the time that they will take."""
    start = last = time.monotonic()
    first = None

    def report(values: Mapping[str, float]) -> None:
        nonlocal last, first
        epoch, now = values.get("epoch"), time.monotonic()
        first = epoch if first is None else first  # of a resumed training not 1
        if now - last >= every:
            last = now
            parts = [f"{key} {value:.4g}" for key, value in values.items()]
            if epoch is not None and first is not None and epochs is not None:
                left = (epochs - epoch) * (now - start) / (epoch - first + 1)
                parts = [f"{part} of {epochs}" if part.startswith("epoch ") else part for part in parts]
                parts.append(f"{int(left) // 60}:{int(left) % 60:02} left")
            LOG.info(", ".join(parts))

    return report
