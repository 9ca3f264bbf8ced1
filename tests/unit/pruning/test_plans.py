"""Plans come from score tables that are whole and of the network, whatever the order of their rows."""

import math

import numpy as np
import pandas as pd
import pytest

from scap.errors import ScapError
from scap.pruning.plans import plan_at, plan_of_widths

SCORES = {"a": [0.1, 0.9, 0.5, 0.7], "b": [1.0, 0.0, 0.6]}
ROWS = [{"layer": layer, "channel": k, "score": value} for layer, values in SCORES.items() for k, value in enumerate(values)]
TABLE = pd.DataFrame(ROWS)
CHANNELS = {"a": 4, "b": 3}
PLAN = {"a": [1, 2, 3], "b": [0, 2]}


def shuffled(seed):
    return TABLE.sample(frac=1, random_state=seed)


@pytest.mark.parametrize("table", [TABLE, TABLE[::-1], TABLE.sort_values("score"), shuffled(1), shuffled(2)])
def test_the_order_of_the_rows_does_not_matter(table):
    assert plan_at(table, 0.5, channels=CHANNELS) == PLAN
    assert list(plan_at(table, 0.5, channels=CHANNELS)) == ["a", "b"]
    assert plan_of_widths(table, {"a": 1, "b": 2}) == {"a": [1], "b": [0, 2]}


def test_of_equal_scores_the_smaller_channel_stays_in_wide_layers_too():
    table = pd.DataFrame({"layer": "wide", "channel": range(1000), "score": [0.25, 0.5] * 500})
    assert plan_of_widths(table, {"wide": 600}) == {"wide": sorted([*range(1, 1000, 2), *range(0, 200, 2)])}


def changed(column, row, value):
    table = TABLE.astype({column: object})
    table.loc[row, column] = value
    return table


DAMAGED = {
    "a row missing in the middle": (TABLE.drop(index=2), "layer a: channel 2 is missing in 3 rows"),
    "the first row missing": (TABLE[1:], "layer a: channel 0 is missing in 3 rows"),
    "a row doubled": (pd.concat([TABLE, TABLE[2:3]]), "layer a: channel 2 is there twice in 5 rows"),
    "all doubled": (pd.concat([TABLE, TABLE]), "layer a: channel 0 is there twice in 8 rows"),
    "a channel doubled for another": (changed("channel", 3, 0), "layer a: channel 0 is there twice"),
    "channels from 1": (TABLE.assign(channel=TABLE["channel"] + 1), "layer a: channel 0 is missing"),
    "half a channel": (changed("channel", 1, 1.5), "layer a: channel 1 is missing"),
    "a channel that is text": (changed("channel", 1, "one"), "layer a: channel 1 is missing"),
    "no rows": (TABLE[:0], "has no rows"),
    "no layer": (changed("layer", 0, None), "a row without a layer"),
    "no channels": (TABLE.drop(columns="channel"), "must have one column 'channel'"),
    "no scores": (TABLE.drop(columns="score"), "must have one column 'score'"),
    "scores twice": (pd.concat([TABLE, TABLE[["score"]]], axis=1), "must have one column 'score'"),
    "NaN": (changed("score", 5, math.nan), "layer b, channel 1: score is nan"),
    "infinity": (changed("score", 5, math.inf), "layer b, channel 1: score is inf"),
    "below 0": (changed("score", 5, -0.5), "layer b, channel 1: score is -0.5, not a number between 0 and 1"),
    "above 1": (changed("score", 5, 60.0), "layer b, channel 1: score is 60.0, not a number between 0 and 1"),
    "text": (changed("score", 5, "much"), "layer b, channel 1: score is much"),
    "true": (changed("score", 5, None), "layer b, channel 1: score is None"),
    "numbers as names": (TABLE.assign(layer=TABLE["layer"].map({"a": 0.1, "b": 0.3})), r"names layers by numbers.*dtype="),
    "a list": (TABLE.to_dict("records"), "is a list; give the DataFrame"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_prunes_nothing(name):
    table, message = DAMAGED[name]
    for plan in (lambda: plan_at(table, 0.5), lambda: plan_of_widths(table, {"a": 1, "b": 1})):
        with pytest.raises(ScapError, match=message):
            plan()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"a": 5, "b": 3}, "layer a has 4 channels, but the network's has 5"),
        ({"a": 2, "b": 3}, "layer a has 4 channels, but the network's has 2"),
        ({"a": 4, "b": 3, "c": 1}, "layer c is missing"),
        ({"a": 4}, "layer b is not among the layers to be pruned"),
    ],
)
def test_a_table_of_another_network_prunes_nothing(channels, message):
    with pytest.raises(ScapError, match=message):
        plan_at(TABLE, 0.5, channels=channels)


@pytest.mark.parametrize(
    "arguments",
    [{"threshold": value} for value in ("0.5", None, True, math.nan, math.inf, -0.1, 1.1, [0.5])]
    + [{"multiple": value} for value in (0, -1, 2.0, "2", None, True)]
    + [{"min_channels": value} for value in (0, 1.5, "2", True)],
)
def test_wrong_numbers_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ScapError, match=f"{name} is .*(give|must)"):
        plan_at(TABLE, **{"threshold": 0.5} | arguments)


@pytest.mark.parametrize("width", [-1, 1.0, "1", None, True])
def test_wrong_widths_are_named(width):
    with pytest.raises(ScapError, match="layer b: width is"):
        plan_of_widths(TABLE, {"a": 1, "b": width})


@pytest.mark.parametrize("value", [None, 3, [4, 3], "ab", ("a", 4), {"a", "b"}])
def test_what_maps_no_layers_is_named(value):
    calls = {"widths": lambda: plan_of_widths(TABLE, value)}
    if value is not None:  # numbers of channels may be left out
        calls["channels"] = lambda: plan_at(TABLE, 0.5, channels=value)
    for name, call in calls.items():
        with pytest.raises(ScapError, match=rf"^{name}: is a \w+; it must map layers to how many channels they"):
            call()


@pytest.mark.parametrize("kind", [dict, pd.Series])
def test_widths_and_channels_may_be_a_series(kind):
    assert plan_of_widths(TABLE, kind({"a": 1, "b": 2}), channels=kind(CHANNELS)) == {"a": [1], "b": [0, 2]}


@pytest.mark.parametrize("threshold", [0, np.float32(0), np.int64(0), -0.0])
def test_numbers_of_numpy_are_numbers(threshold):
    assert plan_at(TABLE, threshold) == {"a": [0, 1, 2, 3], "b": [0, 1, 2]}


def test_a_layer_keeps_at_least_so_many_channels():
    assert plan_at(TABLE, 1.0, min_channels=2) == {"a": [1, 3], "b": [0, 2]}
    assert plan_at(TABLE, 1.0, multiple=2, min_channels=3) == {"a": [0, 1, 2, 3], "b": [0, 1, 2]}
    assert plan_of_widths(TABLE, {"a": 3, "b": 0}, min_channels=2) == {"a": [1, 2, 3], "b": [0, 2]}
