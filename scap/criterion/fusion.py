"""From fidelities and magnitudes to importance scores (docs/method.md, equations 10 and 11)."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scap.checks import check_fields, check_finite, check_number
from scap.errors import ScapError

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("scap", "l1", "random")
FUSIONS = ("additive", "multiplicative", "fidelity", "magnitude")
NORMALISATIONS = ("raw", "min-max", "max", "mean")
MAGNITUDES = ("filter", "rms", "novelty")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class CriterionSettings:
    """How a channel's importance is made; the configuration's `criteria` have the same keys.

    `magnitude_of` says what M_k measures: the L1 norm of the `filter`; the `rms` of the output activation over the
    calibration images; its `novelty`, what stronger channels do not tell of it. `inverted` turns a ranking round, as a
    control: a criterion that tells channels apart does worse then.
    """

    method: str = "scap"
    fusion: str = "additive"
    alpha: float = 0.75
    magnitude_of: str = "filter"
    fidelity_normalisation: str = "min-max"
    magnitude_normalisation: str = "min-max"
    seed: int = 0
    inverted: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "criterion")
        choices = {
            "method": METHODS,
            "fusion": FUSIONS,
            "magnitude_of": MAGNITUDES,
            "fidelity_normalisation": NORMALISATIONS,
            "magnitude_normalisation": NORMALISATIONS,
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ScapError(f"criterion: {key} '{getattr(self, key)}' is unknown; choose one of {', '.join(allowed)}")
        if self.method != "scap" and self.magnitude_of != "filter":
            raise ScapError(f"criterion: magnitude_of '{self.magnitude_of}' needs method 'scap', which records activations")
        check_number(self.alpha, "criterion: alpha", 0, 1)
        check_number(self.seed, "criterion: seed", 0, whole=True)


def filter_norms(weight: NDArray[np.floating]) -> Values:
    """‖W_k‖₁ of a convolution's weight (K, C, h, w), (K,)."""
    return np.abs(weight.astype(np.float64)).sum(axis=tuple(range(1, weight.ndim)))


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


def importance(fidelity: Values, magnitude: Values, settings: CriterionSettings) -> Values:
    """I_k = α·g(1 − F_k) + (1 − α)·M_k over one layer (equation 11), or another `fusion` of the two terms, (K,)."""
    unfaithful = normalise_term(np.clip(1 - fidelity, 0, None), settings.fidelity_normalisation)
    magnitude = normalise_term(magnitude, settings.magnitude_normalisation)
    if settings.fusion == "additive":
        return settings.alpha * unfaithful + (1 - settings.alpha) * magnitude
    return {"multiplicative": unfaithful * magnitude, "fidelity": unfaithful, "magnitude": magnitude}[settings.fusion]


def channel_scores(layer: str, fidelity: Values | None, magnitude: Values, settings: CriterionSettings) -> dict[str, Values]:
    """Columns of the score table for one layer: `fidelity` (NaN for the controls), `magnitude` and `score`, each (K,).

    `magnitude` is what `settings.magnitude_of` names, not normalised yet. `l1`: the score is the magnitude; `random`: uniform
    in [0, 1) by (seed, layer).
    """
    check_finite(magnitude, f"layer {layer}: {settings.magnitude_of} magnitude")
    raw, magnitude = magnitude, normalise_term(magnitude, settings.magnitude_normalisation)
    nothing = np.full_like(raw, np.nan)
    if settings.method == "l1":
        fidelity, score = nothing, magnitude
    elif settings.method == "random":
        fidelity, score = nothing, np.random.default_rng([settings.seed, zlib.crc32(layer.encode())]).random(len(raw))
    elif fidelity is None or len(fidelity) != len(raw):
        raise ScapError(f"layer {layer}: the criterion needs one fidelity per output channel ({len(raw)})")
    else:
        check_finite(fidelity, f"layer {layer}: fidelity")
        score = importance(fidelity, raw, settings)
    score = score.max() + score.min() - score if settings.inverted else score
    return {"fidelity": fidelity, "magnitude": magnitude, "score": score}


def score_table(columns: Mapping[str, Mapping[str, Values]]) -> "pd.DataFrame":
    """The score table: one row a channel, `layer`, `channel`, `fidelity`, `magnitude`, `score`, layers in the order given."""
    import pandas as pd

    tables = [
        pd.DataFrame(values).rename_axis("channel").reset_index().assign(layer=layer) for layer, values in columns.items()
    ]
    return pd.concat(tables, ignore_index=True)[["layer", "channel", "fidelity", "magnitude", "score"]]
