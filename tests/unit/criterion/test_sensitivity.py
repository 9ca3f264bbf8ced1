"""Agreement of rankings and plans: known answers."""

import math

import pandas as pd
import pytest

from scap.criterion.sensitivity import PUBLISHED, distance_to_published, kept_in_common, rank_correlation
from scap.errors import ScapError


def table(**layers):
    """A score table from the scores of each layer; the term l1 ranks in reverse."""
    rows = [
        {"layer": layer, "channel": channel, "l1": -score, "score": score}
        for layer, scores in layers.items()
        for channel, score in enumerate(scores)
    ]
    return pd.DataFrame(rows)


def test_the_rank_correlation_is_the_mean_over_layers_whatever_the_scale():
    first = table(a=[0.1, 0.2, 0.3, 0.4], b=[1, 2, 3])
    assert rank_correlation(first, table(a=[1, 20, 300, 4000], b=[-3, -2, -1])) == pytest.approx(1)
    assert rank_correlation(first, table(a=[4, 3, 2, 1], b=[1, 2, 3])) == pytest.approx(0)  # -1 and 1
    assert rank_correlation(first, table(a=[1, 2, 4, 3], b=[1, 2, 3])) == pytest.approx((0.8 + 1) / 2)  # 1 - 6·2 / (4·15)
    assert rank_correlation(first, first, "l1") == pytest.approx(-1)


def test_the_order_of_rows_does_not_matter():
    first, second = table(a=[0.1, 0.2, 0.3]), table(a=[3, 1, 2])
    assert rank_correlation(first, second.iloc[::-1]) == pytest.approx(rank_correlation(first, second))


def test_a_layer_that_is_not_ranked_is_left_out():
    first = table(a=[0.1, 0.2, 0.3], b=[1, 2, 3])
    assert rank_correlation(first, table(a=[1, 2, 3], b=[1, 1, 1])) == pytest.approx(1)
    assert math.isnan(rank_correlation(first, table(a=[1, 1, 1], b=[1, 1, 1])))


@pytest.mark.parametrize("other", [table(a=[1, 2]), table(b=[1, 2, 3]), table(a=[1, 2, 3], b=[1])])
def test_tables_of_other_channels_are_refused(other):
    with pytest.raises(ScapError, match="do not hold the same layers and channels"):
        rank_correlation(table(a=[1, 2, 3]), other)


def test_kept_in_common_is_the_share_of_the_narrower_plan():
    assert kept_in_common({"a": [0, 1, 2, 3], "b": [0]}, {"a": [2, 3], "b": [1]}) == pytest.approx((1 + 0) / 2)
    assert kept_in_common({"a": [0, 1]}, {"a": [1, 2, 3]}) == pytest.approx(1 / 2)


def test_the_distance_is_in_percentage_points():
    assert distance_to_published(PUBLISHED) == 0
    assert distance_to_published({"macs_removed": 0.9011 - 0.03, "params_removed": 0.9630 - 0.04}) == pytest.approx(5)
