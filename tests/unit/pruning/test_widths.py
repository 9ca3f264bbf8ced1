"""Widths by a budget, and the control of uniform width: the same share of every layer, at no more MACs than another plan."""

import numpy as np
import pandas as pd
import pytest
import torch
from clock import time_by_macs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning import widths
from scap.pruning.counting import count_operations
from scap.pruning.latency import Latency
from scap.pruning.plans import plan_at
from scap.pruning.surgery import cut_network
from scap.pruning.widths import plan_for, uniform_widths

EXAMPLE = torch.zeros(1, 3, 32, 32)
PLAN = {"conv1_2": list(range(3)), "conv2_1": list(range(30)), "conv3_1": list(range(20)), "conv4_2": list(range(100))}


@pytest.fixture(scope="module")
def network():
    return build_network("vgg16", width=0.25)


@pytest.fixture(scope="module")
def small():
    """Two layers of few channels, which every threshold can be tried on."""
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 12, 3, padding=1), torch.nn.ReLU()),
        *(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(12, 4)),
    )


def table_of(widths, seed=0):
    random = np.random.default_rng(seed)
    rows = [(layer, channel, score) for layer, n in widths.items() for channel, score in enumerate(random.random(n))]
    return pd.DataFrame(rows, columns=["layer", "channel", "score"])


SMALL = {"0": 8, "2": 12}
PIXELS = torch.zeros(1, 3, 6, 6)


def left(plan):
    """The shares of MACs and parameters that a plan leaves of the small network, as written on paper."""

    def counts(first, second):  # 3x3 kernels on 3 and `first` channels at 36 positions, then 4 classes
        weights, head = 9 * (3 * first + first * second), 4 * second
        return {"macs": 36 * weights + head, "params": weights + first + second + head + 4}

    before, after = counts(*SMALL.values()), counts(*(len(plan[layer]) for layer in SMALL))
    return {key: after[key] / before[key] for key in before}


def test_the_shares_on_paper_are_those_of_the_pruned_network(small):
    plan = {"0": [1, 4, 6], "2": [0, 1, 2, 3, 11]}
    before, after = (count_operations(each, PIXELS) for each in (small, cut_network(small, plan, PIXELS)))
    assert left(plan) == {key: after[key] / before[key] for key in ("macs", "params")}


BUDGETS = [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.4, "params": 0.6}, {"macs": 0.7, "params": 0.25}, {"macs": 1.0}]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("rounding", [{}, {"multiple": 4}, {"min_channels": 3}])
def test_a_budget_is_met_at_the_lowest_threshold_that_meets_it(small, budget, rounding):
    table = table_of(SMALL)
    fitting = []
    for threshold in sorted(table["score"]):
        plan = plan_at(table, threshold, **rounding)
        if all(left(plan)[key] <= share for key, share in budget.items()):
            fitting.append(plan)
    assert plan_for(table, small, PIXELS, **budget, **rounding) == fitting[0]


def test_both_budgets_hold_where_both_are_given(small):
    table = table_of(SMALL)
    one, other = ({"macs": 0.4}, {"params": 0.2})
    both = left(plan_for(table, small, PIXELS, **one, **other))
    assert both["macs"] <= 0.4
    assert both["params"] <= 0.2
    assert both in [left(plan_for(table, small, PIXELS, **budget)) for budget in (one, other)]


SHARES = st.integers(20, 100).map(lambda percent: percent / 100)  # budgets are met but for rounding


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shares=st.tuples(SHARES, SHARES), key=st.sampled_from(["macs", "params"]), seed=st.integers(0, 9))
def test_a_larger_budget_never_prunes_more(small, shares, key, seed):
    low, high = (plan_for(table_of(SMALL, seed), small, PIXELS, **{key: share}) for share in sorted(shares))
    assert all(set(low[layer]) <= set(high[layer]) for layer in low)


def test_the_whole_network_is_a_budget_that_prunes_nothing(small):
    plan = plan_for(table_of(SMALL), small, PIXELS, macs=1.0, params=1)
    assert {layer: len(kept) for layer, kept in plan.items()} == SMALL


def test_a_layer_whose_scores_are_all_alike_goes_as_a_whole_or_stays(small):
    table = table_of(SMALL).assign(score=0.5)
    assert {layer: len(kept) for layer, kept in plan_for(table, small, PIXELS, macs=1.0).items()} == SMALL
    with pytest.raises(ScapError, match=r"^the budget cannot be met: the smallest plan leaves 1\.0000 of the macs; raise it"):
        plan_for(table, small, PIXELS, macs=0.5)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"macs": 1e-6}, r"^the budget cannot be met: the smallest plan leaves 0\.\d{4} of the macs; raise it"),
        ({"macs": 0.9, "params": 1e-6}, r"leaves 0\.\d{4} of the macs, 0\.\d{4} of the params; raise it"),
        ({}, "no budget is given; say macs= or params="),
        ({"macs": 1.5}, r"macs is 1\.5; it must lie in"),
        ({"macs": 0}, "the budget cannot be met"),
        ({"params": -0.1}, r"params is -0\.1; it must"),
        ({"macs": float("nan")}, "macs is nan; it must"),
        ({"macs": "half"}, r"macs is 'half' \(str\); give a number"),
        ({"macs": True}, r"macs is True \(bool\); give a number"),
    ],
)
def test_a_budget_that_cannot_be_met_or_is_none_is_named(small, budget, message):
    with pytest.raises(ScapError, match=message):
        plan_for(table_of(SMALL), small, PIXELS, **budget)
    with pytest.raises(ScapError, match=message):
        uniform_widths(small, list(SMALL), PIXELS, **budget)


@pytest.mark.parametrize("score", [np.nan, 1.5, -0.1, "high"])
def test_a_damaged_table_is_named(small, score):
    table = table_of(SMALL).astype({"score": object})
    table.loc[3, "score"] = score
    with pytest.raises(ScapError, match=rf"^score table: layer 0, channel 3: score is {score}, not a number between 0 and 1"):
        plan_for(table, small, PIXELS, macs=0.5)


def test_scores_that_rounding_has_put_above_1_have_a_threshold_that_plan_at_takes(small):
    table = table_of(SMALL).assign(score=1 + 5e-7)
    plan = plan_for(table, small, PIXELS, macs=1.0)
    assert plan == plan_at(table, plan.threshold)


def test_every_number_of_channels_is_a_share():
    """29 / 50 of 50 channels are 29, though the product of floats is a little less."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 50, 1), torch.nn.ReLU(), torch.nn.Conv2d(50, 2, 1)).eval()
    found = [uniform_widths(network, ["0"], torch.zeros(1, 1, 2, 2), macs=(3 * count + 1) / 150)["0"] for count in range(1, 50)]
    assert found == list(range(1, 50))


def test_the_plan_says_its_threshold_and_what_it_leaves(small):
    table = table_of(SMALL)
    plan = plan_for(table, small, PIXELS, macs=0.5)
    assert plan == plan_at(table, plan.threshold)
    assert plan.reached == left(plan)


@given(macs=SHARES, floor=st.integers(1, 12), seed=st.integers(0, 9))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_single_layers_have_floors_of_their_own(small, macs, floor, seed):
    table = table_of(SMALL, seed)
    try:
        plan = plan_for(table, small, PIXELS, macs=macs, floors={"2": floor})
    except ScapError:
        assert left({"0": range(1), "2": range(floor)})["macs"] > macs
        return
    assert len(plan["2"]) >= floor
    assert left(plan)["macs"] <= macs
    best = table[table["layer"] == "2"].nlargest(len(plan["2"]), "score")["channel"]
    assert plan["2"] == sorted(best)


def test_a_floor_is_rounded_up_and_is_the_whole_layer_at_most(small):
    plan = plan_for(table_of(SMALL), small, PIXELS, params=0.8, floors={"2": 5, "0": 100}, multiple=4)
    assert len(plan["0"]) == 8
    assert len(plan["2"]) in (8, 12)


def test_layers_to_ignore_are_not_in_the_plan(small):
    plan = plan_for(table_of(SMALL), small, PIXELS, macs=0.6, ignore=["0"])
    assert list(plan) == ["2"]
    assert left({"0": range(8), **plan})["macs"] == plan.reached["macs"] <= 0.6
    assert plan == plan_for(table_of(SMALL), small, PIXELS, macs=0.6, ignore="0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": ["0", "2"]}, "ignore: it names all layers of the score table; leave one"),
        ({"ignore": ["conv"]}, r"ignore: the score table has no layer 'conv'; it has 0, 2"),
        ({"floors": {"22": 3}}, "floors: the score table has no layer '22'; do you mean '2'?"),
        ({"floors": {"2": 0}}, "floors: layer 2 is 0; it must be 1 or more"),
        (
            {"latency": 0, "macs": None},
            r"the budget cannot be met: the smallest plan takes 0\.\d\d of the time, not latency=0; raise it",
        ),
        ({"latency": 1.2}, r"latency is 1\.2; it must lie in"),
    ],
)
def test_floors_layers_and_latencies_that_do_not_fit_are_named(small, options, message, monkeypatch):
    time_by_macs(monkeypatch)
    with pytest.raises(ScapError, match=message):
        plan_for(table_of(SMALL), small, PIXELS, **{"macs": 0.5, **options})


@pytest.mark.parametrize("budget", [{}, {"macs": 0.3}, {"params": 0.9, "macs": 0.8}])
def test_the_lowest_threshold_that_meets_a_latency_too(small, monkeypatch, budget):
    """Where time is what the parameters are: compared with every threshold."""
    measured = []

    def measure(network, example, *, other, **_):
        measured.append(network)
        counts = [count_operations(each, example)["params"] for each in (network, other)]
        return Latency(1.0, 0.0, 1, 1, "cpu", 1, other=1.0, ratio=counts[0] / counts[1])

    monkeypatch.setattr(widths, "measure_latency", measure)
    table = table_of(SMALL)
    fitting = []
    for threshold in sorted(table["score"]):
        plan = plan_at(table, threshold)
        shares = left(plan)
        if shares["params"] <= 0.6 and all(shares[key] <= share for key, share in budget.items()):
            fitting.append(plan)
    found = plan_for(table, small, PIXELS, latency=0.6, **budget)
    assert found == fitting[0]
    assert found.reached == left(found) | {"latency": pytest.approx(left(found)["params"])}
    assert len(measured) <= 6  # 20 thresholds in a bisection, and the smallest plan


@pytest.mark.parametrize("noise", [0.99, 1.01])
def test_noise_prunes_nothing_where_the_whole_time_may_be_taken(small, monkeypatch, noise):
    """By chance each plan may seem slower than the network that it makes smaller."""
    monkeypatch.setattr(widths, "measure_latency", lambda *_, **__: Latency(1.0, 0.0, 1, 1, "cpu", 1, other=1.0, ratio=noise))
    plan = plan_for(table_of(SMALL), small, PIXELS, latency=1)
    assert {layer: len(kept) for layer, kept in plan.items()} == SMALL
    assert plan.reached == {"macs": 1, "params": 1, "latency": 1}


def test_a_latency_is_that_of_the_cut_network(monkeypatch):
    time_by_macs(monkeypatch)
    layers = [torch.nn.Conv2d(16, 192, 3), torch.nn.ReLU(), torch.nn.Conv2d(192, 16, 3)]
    plan = plan_for(table_of({"0": 192}), torch.nn.Sequential(*layers), torch.zeros(1, 16, 20, 20), latency=0.5, threads=1)
    assert plan.reached["latency"] == pytest.approx(plan.reached["macs"]) == pytest.approx(0.5)
    assert len(plan["0"]) == 96


def test_a_budget_on_a_real_network(network):
    widths = {layer: network.get_submodule(layer).out_channels for layer in PLAN}
    plan = plan_for(table_of(widths), network, EXAMPLE, macs=0.6, multiple=2)
    share = macs(network, {layer: len(kept) for layer, kept in plan.items()}) / macs(network, widths)
    assert 0.5 < share <= 0.6
    assert all(len(kept) % 2 == 0 for kept in plan.values())


def macs(network, widths):
    return count_operations(cut_network(network, {layer: list(range(n)) for layer, n in widths.items()}, EXAMPLE), EXAMPLE)[
        "macs"
    ]


@pytest.mark.parametrize("multiple", [1, 4])
def test_uniform_widths_meet_the_budget_and_no_larger_share_does(network, multiple):
    totals = {layer: network.get_submodule(layer).out_channels for layer in PLAN}
    budget = macs(network, {layer: len(kept) for layer, kept in PLAN.items()})
    share = budget / macs(network, totals)
    widths = uniform_widths(network, list(PLAN), EXAMPLE, macs=share, multiple=multiple)
    assert widths.keys() == PLAN.keys()
    assert all(width % multiple == 0 for width in widths.values())
    assert macs(network, widths) <= budget
    shares = [widths[layer] / totals[layer] for layer in PLAN]
    assert max(shares) - min(shares) < multiple / min(totals.values())
    assert macs(network, {layer: min(totals[layer], width + multiple) for layer, width in widths.items()}) > budget


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.4, "params": 0.6}])
@pytest.mark.parametrize("min_channels", [1, 3])
def test_uniform_widths_keep_the_largest_share_that_meets_every_budget(small, budget, min_channels):
    """Compared with every share of channels that is one."""
    fitting = []
    for share in sorted({count / total for total in SMALL.values() for count in range(1, total + 1)}):
        widths = {layer: max(min_channels, int(share * total + 1e-9)) for layer, total in SMALL.items()}
        shares = left({layer: list(range(width)) for layer, width in widths.items()})
        if all(shares[key] <= limit for key, limit in budget.items()):
            fitting.append(widths)
    assert uniform_widths(small, list(SMALL), PIXELS, **budget, min_channels=min_channels) == fitting[-1]


@pytest.mark.parametrize("multiple", [1, 4])
def test_law_7_nothing_is_pruned_where_the_budget_is_the_whole_network(network, multiple):
    totals = {layer: network.get_submodule(layer).out_channels for layer in PLAN}
    assert uniform_widths(network, list(PLAN), EXAMPLE, macs=1, multiple=multiple) == totals
