"""From terms to the importance of channels (docs/method.md, equations 10 and 11). Imports no torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scap.checks import check_finite
from scap.criterion.settings import CriterionSettings
from scap.criterion.terms import REDUNDANCY, TERMS, Values, needs
from scap.errors import ScapError
from scap.reading import ROUNDING

if TYPE_CHECKING:
    import pandas as pd


Gather = Callable[[str, str], Any]  # name of what a term needs, layer -> its value


def evaluate_term(term: str, layers: Sequence[str], gather: Gather) -> dict[str, Values]:
    """Values of a term for the channels of `layers`, (K,) each; `gather` gives what it needs, by name and layer."""
    if "network" in needs(term):
        return TERMS[term](**{need: gather(need, "") for need in needs(term)})
    return {layer: TERMS[term](**{need: gather(need, layer) for need in needs(term)}) for layer in layers}


def normalise_term(values: Values, how: str) -> Values:
    """A term of the score over one layer (K,): `raw`, divided by its `max` or `mean`, or `min-max` to [0, 1].

    Where nothing tells the channels of a layer apart, all get 1. ScapError where a value is NaN or infinite.
    """
    check_finite(values, "a term of the score")
    if how == "raw":
        return values
    low, scale = 0.0, values.max() if how == "max" else values.mean()
    if how == "min-max":
        low, scale = values.min(), np.ptp(values)
    return (values - low) / scale if scale > 0 else np.ones_like(values)


def scaled(term: str, values: Values, settings: CriterionSettings) -> Values:
    """The importance that a term gives to the channels of one layer, normalised, (K,)."""
    return normalise_term(np.clip(1 - values, 0, None) if term in REDUNDANCY else values, settings.scale_of(term))


def combined(parts: Sequence[Values], settings: CriterionSettings) -> Values:
    """The weighted mean of normalised terms, or the product of their powers (equation 11), (K,)."""
    weights = list(settings.terms.values())
    if settings.fusion == "product":
        score = np.prod([part**weight for part, weight in zip(parts, weights, strict=True)], axis=0)
    else:
        score = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)
    return score.max() + score.min() - score if settings.reverse else score


def importance(terms: Mapping[str, Values], settings: CriterionSettings) -> Values:
    """I_k of one layer from its terms, (K,)."""
    return combined([scaled(term, terms[term], settings) for term in settings.terms], settings)


def channel_scores(layer: str, terms: Mapping[str, Values], settings: CriterionSettings) -> dict[str, Values]:
    """Columns of the score table for one layer: every term of the criterion as it is, and `score`, each (K,).

    Raises ScapError, naming layer and term, where values are missing, not finite, or not one for each channel, and where
    the scores leave [0, 1], in which thresholds lie.
    """
    for term in settings.terms:
        check_finite(np.asarray(terms[term], dtype=float), f"layer {layer}: term {term!r}")
    if len({len(terms[term]) for term in settings.terms}) > 1:
        raise ScapError(f"layer {layer}: the terms {', '.join(settings.terms)} have values for different numbers of channels")
    score = importance(terms, settings)
    check_reach(layer, score, settings)
    return {**{term: terms[term] for term in settings.terms}, "score": score}


def check_reach(layer: str, score: Values, settings: CriterionSettings) -> None:
    """Raise ScapError where scores leave [0, 1]."""
    if score.min() < -ROUNDING or score.max() > 1 + ROUNDING:
        scales = ", ".join(f"{term}: {settings.scale_of(term)}" for term in settings.terms)
        reach = f"from {score.min():.3g} to {score.max():.3g}, and thresholds from 0 to 1"
        raise ScapError(f"layer {layer}: the scores reach {reach}; normalise by min-max or max (now {scales})")


def score_table(columns: Mapping[str, Mapping[str, Values]]) -> "pd.DataFrame":
    """The score table: one row a channel, `layer`, `channel`, a column a term, `score`, layers in the order given."""
    import pandas as pd

    tables = []
    for layer, values in columns.items():
        table = pd.DataFrame(values).rename_axis("channel").reset_index()
        table.insert(0, "layer", layer)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def fuse(terms: Mapping[str, Mapping[str, Values]], layers: Sequence[str], criterion: CriterionSettings) -> "pd.DataFrame":
    """The score table from the values of each term, by layer."""
    columns = {layer: {term: values[layer] for term, values in terms.items()} for layer in layers}
    return score_table({layer: channel_scores(layer, values, criterion) for layer, values in columns.items()})
