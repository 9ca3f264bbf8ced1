"""Times of forward passes: what is called how often, in which order, and what is made of it."""

import dataclasses
import re

import pytest
import torch
from clock import stop_the_clock
from torch import nn
from torch.nn.utils import prune

import scap
from scap.errors import ScapError

EXAMPLE = torch.zeros(4, 3, 8, 8)


@pytest.fixture
def clock(monkeypatch):
    return stop_the_clock(monkeypatch)


class Log(list):
    """Calls, those of copies too."""

    def __deepcopy__(self, memo):
        return self


class Takes(nn.Module):
    """A network that takes these seconds, one after the other, and notes its calls."""

    def __init__(self, clock, seconds, log=None, name=""):
        super().__init__()
        self.clock, self.seconds, self.calls, self.log, self.name = clock, seconds, 0, Log() if log is None else log, name

    def forward(self, images):
        self.clock.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        self.log.append((self.name, self.training, torch.is_grad_enabled()))
        return images


def test_median_and_spread_leave_out_the_warmup(clock):
    network = Takes(clock, [100, 50, 50, 1, 2, 3, 4, 5])  # the trial, two warmups, five repeats
    measured = scap.measure_latency(network, EXAMPLE, warmup=2, repeats=5)
    assert measured.median == pytest.approx(3)
    assert measured.spread == pytest.approx(3)  # quartiles 1.5 and 4.5
    assert (measured.images, measured.device, measured.repeats, len(network.log)) == (4, "cpu", 5, 8)
    assert measured.other is measured.ratio is measured.ratio_spread is None


def test_networks_are_called_in_turns_and_the_ratio_is_that_of_pairs(clock):
    log = Log()
    own = Takes(clock, [1, 1, 2, 30], log, "own")  # the machine becomes slower meanwhile
    other = Takes(clock, [1, 2, 4, 60], log, "other")
    measured = scap.measure_latency(own, EXAMPLE, other=other, warmup=0, repeats=3)
    assert measured.ratio == pytest.approx(0.5)
    assert measured.ratio_spread == pytest.approx(0)
    assert (measured.median, measured.other) == (pytest.approx(2), pytest.approx(4))
    assert [name for name, *_ in log[2:]] == ["own", "other"] * 3


def test_networks_run_in_evaluation_mode_and_keep_theirs(clock):
    log = Log()
    network = nn.Sequential(Takes(clock, [1], log), nn.Dropout()).train()
    network[1].eval()
    scap.measure_latency(network, EXAMPLE, repeats=1)
    assert {(training, grad) for _, training, grad in log} == {(False, False)}
    assert [module.training for module in network.modules()] == [True, True, False]


def test_threads_are_those_asked_for_and_put_back(clock):
    before, seen = torch.get_num_threads(), Log()
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


class Moves(nn.Module):
    """Statistics that follow in evaluation, too, a tensor made at the first pass, and noise."""

    def __init__(self):
        super().__init__()
        self.scale, self.grid = nn.Parameter(torch.ones(8)), None
        self.register_buffer("mean", torch.ones(()))

    def forward(self, images):
        self.mean.mul_(0.9).add_(0.1 * images.mean())
        if self.grid is None:
            self.grid = torch.linspace(0, 1, 8)
        return images + self.scale * self.grid + self.mean + torch.rand(())


@pytest.mark.parametrize("place", ["network", "other"])
@pytest.mark.parametrize("world", [torch.enable_grad, torch.inference_mode])
def test_a_network_that_moves_when_it_runs_is_left_as_it_is(place, world, clock):
    network, before = Moves(), torch.get_rng_state()
    with world():
        scap.measure_latency(
            **{"network": nn.Identity(), "example": EXAMPLE, "repeats": 1, place: nn.Sequential(Takes(clock, [1]), network)}
        )
    assert torch.equal(torch.get_rng_state(), before)
    assert (network.mean.item(), network.grid) == (1, None)


def test_what_a_function_keeps_can_be_trained_with(clock):
    network = Moves()
    scap.measure_latency(lambda images: network(images), EXAMPLE, repeats=1)
    network(EXAMPLE).sum().backward()


def compiled_inside():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    network[0].compile(backend="eager")
    return network


def masked():
    network = prune.l1_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.5)
    network(EXAMPLE)
    return network


MODULES = {
    "compiled": lambda: torch.compile(nn.Conv2d(3, 3, 1), backend="eager"),
    "script": lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout())),
    "frozen script": lambda: torch.jit.freeze(torch.jit.trace(nn.Conv2d(3, 3, 1).eval(), EXAMPLE)),
    "exported": lambda: torch.export.export(nn.Conv2d(3, 3, 1), (EXAMPLE,)).module(),
    "DataParallel": lambda: nn.DataParallel(nn.Conv2d(3, 3, 1)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODULES)
def test_modules_of_any_kind_are_measured(kind, clock):
    assert scap.measure_latency(MODULES[kind](), EXAMPLE, repeats=1).repeats == 1


@pytest.mark.parametrize("place", ["network", "other"])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (compiled_inside, r"it is compiled in place.*torch\.compile\({0}\)"),
        (masked, "it cannot be copied: .*prune.remove on it"),
    ],
)
def test_what_a_copy_would_not_be_names_the_remedy(build, message, place, clock):
    network, given = build(), {"network": nn.Identity(), "example": EXAMPLE, "repeats": 1}
    with pytest.raises(ScapError, match=f"^{place}: {message.format(place)}.*pass a function that calls it"):
        scap.measure_latency(**given | {place: network})
    scap.measure_latency(**given | {place: nn.Sequential(Takes(clock, [1]), network).__call__})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": None}, r"^repeats is None \(NoneType\); give a whole number$"),
        ({"warmup": None}, r"^warmup is None \(NoneType\); give a whole number$"),
        ({"warmup": True}, r"^warmup is True \(bool\); give a whole number$"),
        ({"repeats": 0}, "repeats is 0; it must be 1 or more"),
        ({"warmup": -1}, "warmup is -1; it must be 0 or more"),
        ({"threads": 1.5}, r"threads is 1\.5 \(float\); give a whole number"),
        ({"network": nn.Conv2d(5, 3, 1)}, r"^the network does not run on an example of shape \(4, 3, 8, 8\): "),
        ({"other": nn.Conv2d(5, 3, 1)}, r"^other does not run on an example of shape \(4, 3, 8, 8\): "),
        ({"network": "conv1"}, "^network: is a str; give a module, or a function of the example$"),
        ({"other": 3}, "^other: is a int; give a module, or a function of the example$"),
        ({"example": torch.zeros(0, 3, 8, 8)}, "it holds no image"),
    ],
)
def test_what_cannot_be_measured_is_told(options, message, clock):
    with pytest.raises(ScapError, match=message):
        scap.measure_latency(**{"network": nn.Conv2d(3, 3, 1), "example": EXAMPLE, **options})


@pytest.mark.parametrize("place", ["network", "other"])
@pytest.mark.parametrize("call", [0, 1, 2, 5])
def test_whichever_call_fails_is_told_in_one_line(call, place, clock):
    calls = []

    def function(images):
        calls.append(1)
        if len(calls) > call:
            raise ValueError("no memory\nis left")

    given = {"network": nn.Identity(), "other": nn.Identity(), "warmup": 1, "repeats": 5, place: function}
    with pytest.raises(ScapError, match=r"(the network|other) does not run on an example of shape \(4, 3, 8, 8\): no memory$"):
        scap.measure_latency(example=EXAMPLE, **given)
