"""Scores and plans: fusion as written, and law 7 for what the threshold keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scap.criterion.fusion import channel_scores, evaluate_term, fuse, importance, normalise_term, score_table
from scap.criterion.settings import NORMALISATIONS, CriterionSettings
from scap.criterion.terms import RAW, REDUNDANCY
from scap.errors import ScapError
from scap.pruning.plans import plan_at

FIDELITY = np.array([0.5, 0.9, 0.7])
NORMS = np.array([1.0, 4.0, 2.0])
MEASURED = {"fidelity": FIDELITY, "l1": NORMS}
layers_of_scores = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=12), min_size=1, max_size=4)
channels = st.integers(1, 12)


def criterion(terms, **settings):
    return CriterionSettings(terms=terms, **settings)


def table_of(scores):
    return score_table({f"conv{i}": {"l1": np.array(row), "score": np.array(row)} for i, row in enumerate(scores)})


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
        (CriterionSettings(), 0.75 * np.array([1, 0, 0.5]) + 0.25 * np.array([0, 1, 1 / 3])),
        (criterion({"fidelity": 0, "l1": 1}), [0, 1, 1 / 3]),
        (criterion({"fidelity": 0.5, "l1": 0.5}, normalise={"fidelity": "raw", "l1": "max"}), [0.375, 0.55, 0.4]),
        (criterion({"fidelity": 1, "l1": 1}, fusion="product"), [0, 0, 1 / 6]),
        (criterion({"fidelity": 1, "l1": 2}, fusion="product"), [0, 0, 1 / 18]),
        (criterion({"fidelity": 1}), [1, 0, 0.5]),
        (criterion({"l1": 1}), [0, 1, 1 / 3]),
        (criterion({"l1": 1}, normalise={"l1": "mean"}), NORMS * 3 / 7),
    ],
)
def test_fusions(settings, expected):
    np.testing.assert_allclose(importance(MEASURED, settings), expected, atol=1e-12)


def formula_of_the_paper(fidelity, norms, alpha, fusion, unfaithful_how, norms_how):
    """I_k = α·g(1 − F_k) + (1 − α)·M_k, or the product."""
    unfaithful, magnitude = normalise_term(np.clip(1 - fidelity, 0, None), unfaithful_how), normalise_term(norms, norms_how)
    return alpha * unfaithful + (1 - alpha) * magnitude if fusion == "sum" else unfaithful * magnitude


@given(st.data(), channels, st.floats(0, 1), st.sampled_from(NORMALISATIONS), st.sampled_from(NORMALISATIONS))
@pytest.mark.parametrize("fusion", ["sum", "product"])
def test_two_terms_are_the_weighted_mean_or_the_product_of_the_two(fusion, data, count, alpha, first, second):
    """The weights of the paper's formula add up to one."""
    rows = st.lists(st.floats(0, 1), min_size=count, max_size=count).map(np.array)
    fidelity, norms = data.draw(rows), data.draw(rows)
    weights = {"fidelity": alpha, "l1": 1 - alpha} if fusion == "sum" else {"fidelity": 1, "l1": 1}
    settings = criterion(weights, fusion=fusion, normalise={"fidelity": first, "l1": second})
    found = importance({"fidelity": fidelity, "l1": norms}, settings)
    np.testing.assert_allclose(
        found, formula_of_the_paper(fidelity, norms, alpha, fusion, first, second), rtol=1e-12, atol=1e-15
    )


@given(
    channels.flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n, max_size=n)), st.floats(0.01, 1e6 / 3)
)  # up to the largest weight
def test_only_the_ratio_of_the_weights_of_a_sum_counts(values, factor):
    measured = {"fidelity": np.array(values), "l1": np.array(values[::-1])}
    one, other = (importance(measured, criterion({"fidelity": 3 * f, "l1": f})) for f in (1, factor))
    np.testing.assert_allclose(one, other, atol=1e-12)


@given(st.data(), channels, st.sampled_from(["sum", "product"]), st.booleans())
def test_the_score_of_terms_in_the_unit_interval_lies_in_it(data, count, fusion, reverse):
    """So that a threshold in [0, 1] has a meaning, and plan_at takes the table."""
    rows = st.lists(st.floats(0, 1), min_size=count, max_size=count).map(np.array)
    weights = st.floats(0, 5)
    names = ("fidelity", "l1", "random")
    settings = criterion({"novelty": 1} | {name: data.draw(weights) for name in names}, fusion=fusion, reverse=reverse)
    score = importance({name: data.draw(rows) for name in settings.terms}, settings)
    assert (score >= -1e-12).all()
    assert (score <= 1 + 1e-12).all()


def test_a_term_keeps_its_own_scale_where_that_is_the_unit_interval():
    values = np.array([0.2, 0.3, 0.6])
    for term in ("random", "conditional", "conditional-spectral", "conditional-taps"):
        np.testing.assert_array_equal(importance({term: values}, criterion({term: 1})), values)
        stretched = criterion({term: 1}, normalise={term: "min-max"})
        np.testing.assert_allclose(importance({term: values}, stretched), [0, 0.25, 1])
    assert not RAW & REDUNDANCY


@pytest.mark.parametrize("term", ["fidelity", "l1", "random"])
@pytest.mark.parametrize("how", NORMALISATIONS)
def test_reverse_turns_the_ranking_round_and_stays_in_its_range(how, term):
    def scores(reverse):
        return importance({term: FIDELITY}, criterion({term: 1}, normalise={term: how}, reverse=reverse))

    assert scores(True).argsort().tolist() == scores(False).argsort()[::-1].tolist()
    assert [scores(True).min(), scores(True).max()] == pytest.approx([scores(False).min(), scores(False).max()])


def test_a_fidelity_above_one_by_rounding_scores_zero_not_less():
    rounded = {"fidelity": np.array([1 + 1e-9, 1.0, 0.5])}
    assert importance(rounded, criterion({"fidelity": 1}, normalise={"fidelity": "raw"})).min() == 0


def test_columns_are_the_terms_as_they_are_and_the_score():
    columns = channel_scores("conv1", MEASURED, CriterionSettings())
    assert list(columns) == ["fidelity", "l1", "score"]
    assert columns["l1"] is NORMS
    np.testing.assert_array_equal(columns["score"], importance(MEASURED, CriterionSettings()))
    table = score_table({"conv2": columns, "conv1": columns})
    assert list(table.columns) == ["layer", "channel", "fidelity", "l1", "score"]
    assert table["layer"].tolist() == ["conv2"] * 3 + ["conv1"] * 3
    assert table["channel"].tolist() == [0, 1, 2, 0, 1, 2]


def test_terms_are_fused_layer_by_layer_in_the_order_given():
    values = {"l1": {"a": NORMS, "b": NORMS * 10}}
    table = fuse(values, ["b", "a"], criterion({"l1": 1}))
    assert table["layer"].tolist() == ["b"] * 3 + ["a"] * 3
    assert table["l1"].tolist() == [*(NORMS * 10), *NORMS]
    assert table["score"].tolist() == pytest.approx([0, 1, 1 / 3] * 2)


def test_a_term_is_asked_only_for_what_it_needs():
    asked = []

    def gather(need, layer):
        asked.append((need, layer))
        return {"weight": np.ones((2, 1, 1, 1)), "layer": layer, "seed": 0}[need]

    assert evaluate_term("l1", ["a", "b"], gather)["b"].tolist() == [1, 1]
    assert asked == [("weight", "a"), ("weight", "b")]
    evaluate_term("random", ["a"], gather)
    assert {need for need, _ in asked[2:]} == {"weight", "layer", "seed"}


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"fidelity": np.array([0.5, np.nan]), "l1": np.ones(2)}, "layer conv1: term 'fidelity': channel 1 is nan"),
        ({"fidelity": np.ones(2), "l1": np.array([np.inf, 1])}, "layer conv1: term 'l1': channel 0 is inf"),
        ({"fidelity": np.ones(2), "l1": np.ones(3)}, "layer conv1: the terms fidelity, l1 have values for different numbers"),
        ({"fidelity": np.ones(0), "l1": np.ones(0)}, "layer conv1: term 'fidelity': shape"),
    ],
)
def test_values_that_cannot_be_fused_are_named(measured, message):
    with pytest.raises(ScapError, match=message):
        channel_scores("conv1", measured, CriterionSettings())


@pytest.mark.parametrize(("how", "highest"), [("raw", "4"), ("mean", "1.71")])
def test_a_scale_that_leaves_the_unit_interval_is_named(how, highest):
    """A threshold in [0, 1] would keep all, or mean nothing."""
    message = f"^layer conv1: the scores reach from .* to {highest}, and thresholds from 0 to 1; .* \\(now l1: {how}\\)$"
    with pytest.raises(ScapError, match=message):
        channel_scores("conv1", {"l1": NORMS}, criterion({"l1": 1}, normalise={"l1": how}))


@settings(max_examples=40)  # each makes tables
@given(layers_of_scores, st.floats(0, 1), st.floats(0, 1), st.integers(1, 5))
def test_law_7_a_lower_threshold_never_prunes_more(scores, one, other, multiple):
    low, high = (plan_at(table_of(scores), t, multiple) for t in sorted((one, other)))
    assert all(set(high[layer]) <= set(low[layer]) for layer in low)


@settings(max_examples=40)  # each makes tables
@given(layers_of_scores, st.floats(0, 1), st.integers(1, 5))
def test_law_7_no_layer_is_emptied_and_zero_keeps_all(scores, threshold, multiple):
    for row, kept in zip(scores, plan_at(table_of(scores), threshold, multiple).values(), strict=True):
        above = sum(score >= threshold for score in row)
        assert len(kept) == min(len(row), -(-max(1, above) // multiple) * multiple)
        assert min(row[k] for k in kept) >= max([row[k] for k in range(len(row)) if k not in kept], default=0)
    assert [len(kept) for kept in plan_at(table_of(scores), 0.0).values()] == [len(row) for row in scores]


def test_a_threshold_outside_the_unit_interval_is_refused():
    with pytest.raises(ScapError, match=r"threshold is 1\.5"):
        plan_at(table_of([[0.1, 0.2]]), 1.5)
