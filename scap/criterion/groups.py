"""Scores of coupled layers: one for what goes at once, from the terms of each of its channels. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scap.checks import check_finite
from scap.criterion.fusion import check_reach, combined, scaled, score_table
from scap.criterion.settings import CriterionSettings
from scap.criterion.terms import Values, needs

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Members = Mapping[str, NDArray[np.int64]]  # layer of a group -> (K,) which unit (what goes at once) each channel is of


def fuse_groups(
    terms: Mapping[str, Mapping[str, Values]], groups: Mapping[str, "Members"], settings: CriterionSettings
) -> "pd.DataFrame":
    """The score table of coupled groups: one row a channel of the layer that a group is named by.

    Each term is normalised over each layer of a group, as alone; then the values of all channels that go at once are fused
    into one (`settings.together`), and the terms into the score. A term of the whole network (conditional) is the group's
    already. Channels that go at once have equal rows. `terms`: name -> layer -> (K,); `groups`: name -> members.
    """
    most = max(int(np.bincount(np.concatenate(list(members.values()))).max()) for members in groups.values())
    return score_table({name: _columns(name, members, terms, settings, most) for name, members in groups.items()})


def _columns(
    name: str, members: "Members", terms: Mapping[str, Mapping[str, Values]], settings: CriterionSettings, most: int
) -> dict[str, Values]:
    columns, parts = {}, []
    for term in settings.terms:
        whole = "network" in needs(term)
        layers, how = ([name], "mean") if whole else (list(members), settings.together)
        for layer in layers:
            check_finite(np.asarray(terms[term][layer], dtype=float), f"layer {layer}: term {term!r}")
        units = np.concatenate([members[layer] for layer in layers])
        part = fused(np.concatenate([scaled(term, terms[term][layer], settings) for layer in layers]), units, how)
        parts.append(part / most if how == "sum" else part)
        columns[term] = fused(np.concatenate([terms[term][layer] for layer in layers]), units, how)[members[name]]
    score = combined(parts, settings)
    check_reach(name, score, settings)
    return columns | {"score": score[members[name]]}


def fused(values: Values, units: "NDArray[np.int64]", how: str) -> Values:
    """The `mean`, `sum` or `max` of the values of each unit, (U,).

    >>> fused(np.array([1.0, 3.0, 2.0, 8.0]), np.array([0, 1, 0, 1]), "mean").tolist()
    [1.5, 5.5]
    """
    if how == "max":
        largest = np.full(units.max() + 1, -np.inf)
        np.maximum.at(largest, units, values)
        return largest
    total = np.bincount(units, weights=values).astype(float)
    return total if how == "sum" else total / np.bincount(units)
