"""Times of forward passes: what is called how often, in which order, and what is made of it."""

import dataclasses
import re

import pytest
import torch
from clock import stop_the_clock
from torch import nn

import scap
from scap.errors import ScapError

EXAMPLE = torch.zeros(4, 3, 8, 8)


@pytest.fixture
def clock(monkeypatch):
    return stop_the_clock(monkeypatch)


class Takes(nn.Module):
    """A network that takes these seconds, one after the other, and notes its calls."""

    def __init__(self, clock, seconds, log=None):
        super().__init__()
        self.clock, self.seconds, self.calls, self.log = clock, seconds, 0, log if log is not None else []

    def forward(self, images):
        self.clock.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        self.log.append((self, self.training, torch.is_grad_enabled()))
        return images


def test_median_and_spread_leave_out_the_warmup(clock):
    network = Takes(clock, [100, 50, 50, 1, 2, 3, 4, 5])  # the trial, two warmups, five repeats
    measured = scap.measure_latency(network, EXAMPLE, warmup=2, repeats=5)
    assert measured.median == pytest.approx(3)
    assert measured.spread == pytest.approx(3)  # quartiles 1.5 and 4.5
    assert (measured.images, measured.device, measured.repeats, network.calls) == (4, "cpu", 5, 8)
    assert measured.other is measured.ratio is measured.ratio_spread is None


def test_networks_are_called_in_turns_and_the_ratio_is_that_of_pairs(clock):
    log = []
    own = Takes(clock, [1, 1, 2, 30], log)  # the machine becomes slower meanwhile
    other = Takes(clock, [1, 2, 4, 60], log)
    measured = scap.measure_latency(own, EXAMPLE, other=other, warmup=0, repeats=3)
    assert measured.ratio == pytest.approx(0.5)
    assert measured.ratio_spread == pytest.approx(0)
    assert (measured.median, measured.other) == (pytest.approx(2), pytest.approx(4))
    assert [network for network, *_ in log[2:]] == [own, other] * 3


def test_networks_run_in_evaluation_mode_and_are_put_back(clock):
    log = []
    network = nn.Sequential(Takes(clock, [1], log), nn.Dropout()).train()
    network[1].eval()
    scap.measure_latency(network, EXAMPLE, repeats=1)
    assert {(training, grad) for _, training, grad in log} == {(False, False)}
    assert [module.training for module in network.modules()] == [True, True, False]


def test_threads_are_those_asked_for_and_put_back(clock):
    before, seen = torch.get_num_threads(), []
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    assert scap.measure_latency(network, EXAMPLE, threads=2, repeats=1).threads == 2
    assert set(seen) == {2}
    assert torch.get_num_threads() == before
    assert scap.measure_latency(network, EXAMPLE, repeats=1).threads == before


@pytest.mark.real_time
def test_time_that_really_passes():
    """A network of 64 times the work, 30 pairs of calls: the median is on the right side on a busy machine too."""
    wide, narrow = nn.Conv2d(3, 512, 3), nn.Conv2d(3, 8, 3)
    measured = scap.measure_latency(narrow, torch.zeros(8, 3, 32, 32), other=wide, threads=1)
    assert 0 < measured.ratio < 0.7
    assert scap.measure_latency(wide, torch.zeros(8, 3, 32, 32), other=narrow, threads=1).ratio > 1.4


def test_functions_and_examples_of_several_arguments(clock):
    seen = []
    measured = scap.measure_latency(lambda left, right: seen.append(left + right), (EXAMPLE, EXAMPLE), warmup=0, repeats=2)
    assert (len(seen), measured.images) == (3, 4)


def test_a_measurement_is_frozen_and_reads_well(clock):
    measured = scap.measure_latency(Takes(clock, [2e-3]), EXAMPLE, other=Takes(clock, [8e-3]), threads=1, warmup=0, repeats=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.median = 1
    assert re.fullmatch(r"2 ms ± \S+ for 4 images on cpu, 1 threads, 0\.250 of the other's", str(measured))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "repeats is 0; it must be 1 or more"),
        ({"warmup": -1}, "warmup is -1; it must be 0 or more"),
        ({"threads": 1.5}, r"threads is 1\.5 \(float\); give a whole number"),
        ({"other": nn.Conv2d(5, 3, 1)}, r"the network does not run on an example of shape \(4, 3, 8, 8\): "),
        ({"example": torch.zeros(0, 3, 8, 8)}, "it holds no image"),
    ],
)
def test_what_cannot_be_measured_is_told(options, message):
    with pytest.raises(ScapError, match=message):
        scap.measure_latency(nn.Conv2d(3, 3, 1), **{"example": EXAMPLE, **options})
