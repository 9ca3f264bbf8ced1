"""Learning-rate schedules keep their promises; impossible settings are refused by name."""

import math

import pytest
from conftest import choices

from scap.errors import ScapError
from scap.training.settings import TrainingSettings, learning_rate_at

SCHEDULES = choices(TrainingSettings, "schedule")


def settings(**changes):
    return TrainingSettings(**{"epochs": 2, "batch_size": 8, "learning_rate": 0.4, **changes})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_climbs_to_its_peak_and_falls_to_zero(schedule):
    rates = [learning_rate_at(settings(schedule=schedule, warmup=0.25), step / 100) for step in range(101)]
    assert rates[25] == max(rates) == 0.4
    assert rates[0] == rates[100] == 0
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)


def test_the_schedules_fall_as_a_line_and_as_half_a_cosine():
    one_cycle, cosine = (settings(schedule=schedule, warmup=0.2) for schedule in ("one-cycle", "cosine"))
    assert learning_rate_at(one_cycle, 0.4) == pytest.approx(0.4 * 0.75)
    assert learning_rate_at(cosine, 0.4) == pytest.approx(0.4 * (1 + math.cos(math.pi * 0.25)) / 2)


@pytest.mark.parametrize(("warmup", "progress"), [(0, 0), (1, 1)])
def test_a_warmup_of_nothing_or_of_everything_is_possible(warmup, progress):
    assert math.isfinite(learning_rate_at(settings(warmup=warmup), progress))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schedule", "linear"),
        ("label_smoothing", 1),
        ("precision", "float16"),
        ("batch_size", 0),
        ("learning_rate", -0.1),
        ("temperature", 0),
        ("epochs", -1),
        ("crop", -1),
        ("momentum", 1),
        ("ema", math.nan),
        ("distillation", 2),
        ("epochs", 2.0),
        ("flip", 1),
    ],
)
def test_an_impossible_setting_is_named(key, value):
    with pytest.raises(ScapError, match=f"^training: {key} is {value!r}; "):
        settings(**{key: value})
