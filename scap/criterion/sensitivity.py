"""Interpretations of the criterion compared without any training: sizes at a threshold, agreement of rankings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scap.errors import ScapError
from scap.pruning.plans import Plan
from scap.published import PUBLISHED

if TYPE_CHECKING:
    import pandas as pd


def rank_correlation(first: pd.DataFrame, second: pd.DataFrame, column: str = "score") -> float:
    """Spearman's correlation of the scores of `first` with a column of `second` within a layer, mean over layers.

    Both are score tables of the same channels. Layers where one of the two ranks nothing are left out; NaN if all are.
    """
    keys = ["layer", "channel"]
    both = first[[*keys, "score"]].merge(second[[*keys, column]], on=keys, suffixes=("", "_other"))
    if len(both) != len(first) or len(both) != len(second):
        raise ScapError("the two score tables do not hold the same layers and channels")
    other = "score_other" if column == "score" else column
    ranks = both.groupby("layer", sort=False)[["score", other]].rank().assign(layer=both["layer"])
    correlations = [part["score"].corr(part[other]) for _, part in ranks.groupby("layer", sort=False)]
    found = [value for value in correlations if value == value]
    return sum(found) / len(found) if found else float("nan")


def kept_in_common(first: Plan, second: Plan) -> float:
    """Share of channels that both plans keep, of those that the narrower one keeps of a layer; mean over layers.

    1 where one plan's channels are all among the other's. By chance it is about the width that the wider one keeps.
    """
    shares = [len(set(kept) & set(second[layer])) / min(len(kept), len(second[layer])) for layer, kept in first.items()]
    return sum(shares) / len(shares)


def distance_to_published(removed: Mapping[str, float]) -> float:
    """Distance from the published size, percentage points: the root of the summed squares of FLOPs and parameters."""
    return 100 * sum((removed[key] - value) ** 2 for key, value in PUBLISHED.items()) ** 0.5
