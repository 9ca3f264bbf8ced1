"""Time for tests: it passes only where a test tells it to, so that a busy machine decides nothing."""

import scap
from scap.pruning import latency


class Clock:
    """In the place of the module `time`."""

    now = 0.0

    def __deepcopy__(self, memo) -> "Clock":
        return self  # copies of a network, which are what is measured, let the same time pass

    def perf_counter(self) -> float:
        return self.now


def stop_the_clock(monkeypatch) -> Clock:
    """What measures latency reads this clock."""
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


class NoClock:
    """What a test reads that asks for the real time of a pass and does not say so."""

    def perf_counter(self) -> float:
        raise AssertionError("real time decides nothing in tests: stop_the_clock, time_by_macs, or @pytest.mark.real_time")


def time_by_macs(monkeypatch) -> None:
    """A forward pass takes a second for each multiplication."""
    clock, run, known = stop_the_clock(monkeypatch), latency.call, {}

    def timed(network, example):
        if network not in known:
            known[network] = scap.count_operations(network, example)["macs"]
        clock.now += known[network]
        return run(network, example)

    monkeypatch.setattr(latency, "call", timed)
