"""A criterion is a set of terms: what cannot be one is refused by name."""

import math

import pytest
import torch

from scap.criterion.score import score_network
from scap.criterion.settings import AutoencoderSettings, CalibrationSettings, CriterionSettings
from scap.criterion.terms import TERMS
from scap.errors import ScapError


def test_the_default_is_our_interpretation_of_the_paper():
    assert CriterionSettings().terms == {"fidelity": 0.75, "l1": 0.25}
    assert CriterionSettings().fusion == "sum"


@pytest.mark.parametrize("term", TERMS)
def test_every_term_can_stand_alone(term):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 2, 3))
    criterion = CriterionSettings(terms={term: 1}, normalise={term: "max"})
    table = score_network(network, torch.rand(8, 3, 8, 8), criterion=criterion)
    assert list(table.columns) == ["layer", "channel", term, "score"]
    assert table["score"].nunique() == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": {"fidelty": 1}}, r"criterion: terms: 'fidelty' is unknown; did you mean 'fidelity'\?"),
        ({"terms": {"scrap": 1, "l1": 1}}, "criterion: terms: 'scrap' is unknown; choose one of fidelity, l1, rms, novelty"),
        ({"terms": {"l1": 1e308}}, "criterion: terms: the weight of 'l1' is 1e.308; it must be from 0 to 1e.06"),
        ({"terms": {"l1": 10**400}}, "criterion: terms: the weight of 'l1' is 1000000000"),
        ({"terms": {"l1": -0.5}}, "criterion: terms: the weight of 'l1' is -0.5; it must be from 0 to 1e.06"),
        ({"terms": {"l1": math.nan}}, "criterion: terms: the weight of 'l1' is nan"),
        ({"terms": {"l1": math.inf}}, "criterion: terms: the weight of 'l1' is inf"),
        ({"terms": {"l1": True}}, "criterion: terms: the weight of 'l1' is True"),
        ({"terms": {"l1": "1"}}, "criterion: terms: the weight of 'l1' is '1'"),
        ({"terms": {"l1": None}}, "criterion: terms: the weight of 'l1' is None"),
        ({"terms": {"l1": 0, "rms": 0.0}}, "criterion: terms: all weights are 0; give one of them a weight above 0"),
        ({"terms": {}}, r"criterion: terms is \{\}; name one at least, with its weight"),
        ({"terms": "l1"}, "criterion: terms is 'l1'; name one at least, with its weight"),
        ({"terms": ["l1"]}, r"criterion: terms is \['l1'\]; name one at least, with its weight"),
        ({"fusion": "multiplicative"}, "criterion: fusion is 'multiplicative'; choose one of sum, product"),
        ({"normalise": {"rms": "raw"}}, "criterion: normalise: 'rms' is no term of this criterion"),
        ({"normalise": {"l1": "minmax"}}, r"criterion: normalise: l1 'minmax' is unknown; did you mean 'min-max'\?"),
        ({"normalise": {"l1": 3}}, "criterion: normalise: l1 3 is unknown; choose one of raw, min-max, max, mean"),
        ({"normalise": "raw"}, "criterion: normalise is 'raw'; give a scale by term"),
        ({"reverse": 1}, "criterion: reverse is 1; it must be true or false"),
        ({"seed": -1}, "criterion: seed is -1; it must be at least 0"),
        ({"seed": 2**32}, "criterion: seed is 4294967296; it must be at most 4294967295"),
        ({"seed": 1.0}, "criterion: seed is 1.0; it must be a whole number"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ScapError, match=f"^{message}"):
        CriterionSettings(**arguments)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bottleneck", 0), ("epochs", 0), ("batch_size", 0), ("tolerance", -0.1), ("workspace_mb", 0), ("explained", 1.0)],
)
def test_an_impossible_autoencoder_is_refused_by_name(key, value):
    with pytest.raises(ScapError, match=f"^autoencoder: {key} is {value}; it must be "):
        AutoencoderSettings(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("images", 0), ("outputs", "relu"), ("dtype", "float64")])
def test_an_impossible_calibration_is_refused_by_name(key, value):
    with pytest.raises(ScapError, match=f"^calibration: {key} is {value!r}; "):
        CalibrationSettings(**{key: value})
