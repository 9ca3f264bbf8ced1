"""Learning-rate schedules keep their promises; impossible settings are refused by name."""

import math
from dataclasses import fields

import pytest
from conftest import choices

from scap.errors import ScapError
from scap.training.settings import TrainingSettings, learning_rate_at

SCHEDULES = choices(TrainingSettings, "schedule")


def settings(**changes):
    return TrainingSettings(**{"epochs": 2, "batch_size": 8, "learning_rate": 0.4, **changes})


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
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
        ("momentum", 1),
        ("precision", "float16"),
        ("batch_size", 0),
        ("learning_rate", -0.1),
        ("temperature", 0),
        ("epochs", -1),
        ("crop", -1),
        ("ema", math.nan),
        ("distillation", 2),
        ("label_smoothing", 1),
        ("ema", 1),
        ("epochs", 2.0),
        ("flip", 1),
        ("bias_rate", 0),
        ("learning_rate", math.inf),
        ("weight_decay", math.nan),
        ("padding", "zeros"),
        ("small_images", (16, 0)),
        ("small_images", (16.5,)),
    ],
)
def test_an_impossible_setting_is_named(key, value):
    with pytest.raises(
        ScapError, match=f"^training: {key} is .*{value if isinstance(value, str | float | int) else value[-1]}"
    ):
        settings(**{key: value})


@pytest.mark.parametrize("key", [each.name for each in fields(TrainingSettings) if each.type is float])
@pytest.mark.parametrize("value", [1e300, -1e300, 10**40])
def test_no_number_is_beyond_what_a_tensor_holds(key, value):
    with pytest.raises(ScapError, match=rf"^training: {key} is .*must be (at (most|least)|above|below)"):
        settings(**{key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alternating_flip": True}, "training: alternating_flip without flip would mirror nothing; set flip to true as well"),
        (
            {"padding": "reflected"},
            "training: padding 'reflected' with crop 0 would do nothing; set crop, or leave padding out",
        ),
        ({"small_images": (8, 8, 8)}, "training: small_images holds 3 sizes for 2 epochs; give at most one an epoch"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ScapError, match=f"^{message}$"):
        settings(**changes)


def test_the_side_of_an_epoch_is_the_listed_one_and_then_the_images_own():
    chosen = settings(epochs=4, small_images=[16, 24])  # a list, as a configuration has it
    assert [chosen.side_in(epoch) for epoch in range(4)] == [16, 24, None, None]
