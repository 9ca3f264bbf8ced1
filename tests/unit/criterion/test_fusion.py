"""Scores and plans: fusion as written, and law 7 for what the threshold keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scap.criterion.fusion import CriterionSettings, channel_scores, filter_norms, importance, normalise_term, score_table
from scap.errors import ScapError
from scap.pruning.plans import plan_at

FIDELITY = np.array([0.5, 0.9, 0.7])
NORMS = np.array([1.0, 4.0, 2.0])
layers_of_scores = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=4)


def table_of(scores):
    values = {f"conv{i}": np.array(row) for i, row in enumerate(scores)}
    return score_table({name: {"fidelity": row, "magnitude": row, "score": row} for name, row in values.items()})


def test_filter_norms_are_l1():
    weight = np.array([[[[1.0, -2.0]], [[0.5, 0.0]]], [[[0.0, 0.0]], [[0.0, -3.0]]]])
    np.testing.assert_allclose(filter_norms(weight), [3.5, 3.0])


@pytest.mark.parametrize(
    ("how", "expected"),
    [("raw", NORMS), ("max", [0.25, 1, 0.5]), ("mean", NORMS * 3 / 7), ("min-max", [0, 1, 1 / 3])],
)
def test_normalisations(how, expected):
    np.testing.assert_allclose(normalise_term(NORMS, how), expected)
    np.testing.assert_allclose(normalise_term(np.zeros(3), how), 0 if how == "raw" else 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.75 * np.array([1, 0, 0.5]) + 0.25 * np.array([0, 1, 1 / 3])),
        ({"alpha": 0.0}, [0, 1, 1 / 3]),
        ({"fidelity_normalisation": "raw", "magnitude_normalisation": "max", "alpha": 0.5}, [0.375, 0.55, 0.4]),
        ({"fusion": "multiplicative"}, [0, 0, 1 / 6]),
        ({"fusion": "fidelity"}, [1, 0, 0.5]),
        ({"fusion": "magnitude"}, [0, 1, 1 / 3]),
    ],
)
def test_fusions(settings, expected):
    np.testing.assert_allclose(importance(FIDELITY, NORMS, CriterionSettings(**settings)), expected, atol=1e-12)


def test_controls():
    l1 = channel_scores("conv1", None, NORMS, CriterionSettings(method="l1"))
    np.testing.assert_allclose(l1["score"], [0, 1, 1 / 3])
    assert np.isnan(l1["fidelity"]).all()
    random = [
        channel_scores(layer, None, NORMS, CriterionSettings(method="random", seed=s))["score"]
        for layer, s in [("conv1", 0), ("conv1", 0), ("conv2", 0), ("conv1", 1)]
    ]
    assert (random[0] == random[1]).all()
    assert not (random[0] == random[2]).any()
    assert not (random[0] == random[3]).any()


@pytest.mark.parametrize("method", ["scap", "l1", "random"])
@pytest.mark.parametrize("how", ["raw", "mean", "max", "min-max"])
def test_inverted_turns_the_ranking_round_and_stays_in_its_range(how, method):
    def scores(inverted):
        settings = CriterionSettings(method, fusion="magnitude", magnitude_normalisation=how, inverted=inverted)
        return channel_scores("conv1", FIDELITY, NORMS, settings)["score"]

    assert scores(True).argsort().tolist() == scores(False).argsort()[::-1].tolist()
    assert [scores(True).min(), scores(True).max()] == pytest.approx([scores(False).min(), scores(False).max()])


def test_a_fidelity_above_one_by_rounding_scores_zero_not_less():
    scores = importance(
        np.array([1 + 1e-9, 1.0, 0.5]), NORMS, CriterionSettings(fusion="fidelity", fidelity_normalisation="raw")
    )
    assert scores.min() == 0


@given(layers_of_scores, st.floats(0, 1), st.floats(0, 1), st.integers(1, 5))
def test_law_7_a_lower_threshold_never_prunes_more(scores, one, other, multiple):
    low, high = (plan_at(table_of(scores), t, multiple) for t in sorted((one, other)))
    assert all(set(high[layer]) <= set(low[layer]) for layer in low)


@given(layers_of_scores, st.floats(0, 1), st.integers(1, 5))
def test_law_7_no_layer_is_emptied_and_zero_keeps_all(scores, threshold, multiple):
    for row, kept in zip(scores, plan_at(table_of(scores), threshold, multiple).values(), strict=True):
        above = sum(score >= threshold for score in row)
        assert len(kept) == min(len(row), -(-max(1, above) // multiple) * multiple)
        assert min(row[k] for k in kept) >= max([row[k] for k in range(len(row)) if k not in kept], default=0)
    assert [len(kept) for kept in plan_at(table_of(scores), 0.0).values()] == [len(row) for row in scores]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "scrap"}, "method 'scrap' is unknown; choose one of scap, l1, random"),
        ({"fusion": "sum"}, "fusion 'sum'"),
        ({"magnitude_of": "gamma"}, "magnitude_of 'gamma' is unknown; choose one of filter, rms, novelty"),
        ({"method": "l1", "magnitude_of": "rms"}, "magnitude_of 'rms' needs method 'scap', which records activations"),
        ({"alpha": 1.5}, r"alpha is 1.5; it must lie in \[0, 1\]"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ScapError, match=message):
        CriterionSettings(**arguments)


def test_a_threshold_outside_the_unit_interval_is_refused():
    with pytest.raises(ScapError, match=r"threshold is 1\.5"):
        plan_at(table_of([[0.1, 0.2]]), 1.5)
