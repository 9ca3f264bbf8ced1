"""For all tests of the library."""

import pytest
from clock import NoClock

from scap.pruning import latency


@pytest.fixture(autouse=True)
def no_real_time(request, monkeypatch):
    """How long a network really takes decides only where a test says so (tests/clock.py)."""
    if "real_time" not in request.keywords:
        monkeypatch.setattr(latency, "time", NoClock())
