"""Settings are described once: what a field may hold is checked, said in help(), and named when it is broken."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar, get_args, get_origin

import pytest

from scap.criterion.settings import AutoencoderSettings, CalibrationSettings, CriterionSettings
from scap.errors import ScapError
from scap.settings import BOUNDS, Settings, choose, described, option
from scap.training.settings import TrainingSettings

PUBLIC = [AutoencoderSettings, CalibrationSettings, CriterionSettings, TrainingSettings]


@described
@dataclass(frozen=True)
class Example(Settings):
    """An example."""

    SECTION: ClassVar[str] = "example"

    size: int = option("size of it", minimum=1, maximum=9)
    share: float = option("share of it", 0.5, exclusiveMinimum=0, exclusiveMaximum=1)
    loud: bool = option("whether it is loud", False)
    colour: str = option("its colour", "red", choices=("red", "green"))
    parts: dict = option("its parts", {"wheel": 4})


def test_values_within_the_bounds_are_taken():
    for size in (1, 9):
        assert Example(size).size == size
    assert Example(1, share=1e-300, loud=True, colour="green").colour == "green"
    assert Example(1, share=0.25) == Example(size=1, share=0.25)
    assert type(Example(1, share=0.25).size) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "example: size is 0; it must be at least 1"),
        ({"size": 10}, "example: size is 10; it must be at most 9"),
        ({"share": 0}, "example: share is 0; it must be above 0"),
        ({"share": 1.0}, "example: share is 1.0; it must be below 1"),
        ({"share": math.nan}, "example: share is nan; it must be a finite number"),
        ({"share": -math.inf}, "example: share is -inf; it must be a finite number"),
        ({"share": "0.5"}, "example: share is '0.5'; it must be a number"),
        ({"share": None}, "example: share is None; it must be a number"),
        ({"share": True}, "example: share is True; it must be a number"),
        ({"size": 2.0}, "example: size is 2.0; it must be a whole number"),
        ({"size": True}, "example: size is True; it must be a whole number"),
        ({"size": [1]}, "example: size is [1]; it must be a whole number"),
        ({"loud": 1}, "example: loud is 1; it must be true or false"),
        ({"loud": "yes"}, "example: loud is 'yes'; it must be true or false"),
        ({"colour": "grean"}, "example: colour is 'grean'; did you mean 'green'?"),
        ({"colour": "blue"}, "example: colour is 'blue'; choose one of red, green"),
        ({"colour": 5}, "example: colour is 5; it must be text"),
    ],
)
def test_a_value_that_a_field_cannot_hold_is_named(values, message):
    with pytest.raises(ScapError) as error:
        Example(**{"size": 1} | values)
    assert str(error.value) == message


def test_a_default_that_can_be_changed_is_no_other_objects():
    first, second = Example(1), Example(1)
    assert first.parts == {"wheel": 4}
    assert first.parts is not second.parts


def test_help_tells_meaning_default_bounds_and_choices():
    lines = [line.strip() for line in (Example.__doc__ or "").splitlines()]
    assert lines[0] == "An example."
    assert lines[lines.index("Args:") + 1 :] == [
        "size: size of it (at least 1; at most 9)",
        "share: share of it (above 0; below 1; default 0.5)",
        "loud: whether it is loud (default False)",
        "colour: its colour (red, green; default 'red')",
        "parts: its parts (default {'wheel': 4})",
    ]


@pytest.mark.parametrize("cls", PUBLIC)
def test_every_field_of_the_projects_settings_is_in_its_docstring(cls):
    documented = cls.__doc__.split("Args:")[1]
    for each in fields(cls):
        assert f"\n    {each.name}: {each.metadata['description']}" in documented


@pytest.mark.parametrize("cls", PUBLIC)
def test_what_a_field_states_is_what_is_checked(cls):
    """Every bound, kind and choice of every setting of the project: what keeps it is taken, what breaks it is refused."""
    needed = {}
    if cls is TrainingSettings:
        needed = {"epochs": 1, "batch_size": 1, "learning_rate": 1, "flip": True, "crop": 1}

    def settings(each, value):
        is_list = get_origin(each.type) is list and not isinstance(value, str)
        return cls(**needed | {each.name: [value] if is_list else value})

    def refused(each, value):
        with pytest.raises(ScapError, match=f"^{cls.SECTION}: {each.name} "):
            settings(each, value)

    for each in fields(cls):
        for value in each.metadata.get("choices", ()):
            settings(each, value)
        if "choices" in each.metadata:
            refused(each, "nonesuch")
        for bound in BOUNDS.keys() & each.metadata.keys():
            limit, outwards = each.metadata[bound], -1 if "inimum" in bound else 1
            if bound.startswith("exclusive"):
                refused(each, limit)
            else:
                settings(each, limit)
                refused(each, limit + outwards)
        kind = get_args(each.type)[0] if get_origin(each.type) is list else each.type
        if kind in (int, float):
            for value in (math.nan, math.inf, True, "1", None):
                refused(each, value)
        if kind is int:
            refused(each, 2.0)


@pytest.mark.parametrize(
    ("value", "end"),
    [("momentun", "did you mean 'momentum'?"), ("x", "choose one of momentum, epochs"), (5, "choose one of momentum, epochs")],
)
def test_the_nearest_name_is_proposed_or_all_are_listed(value, end):
    assert choose(value, ["momentum", "epochs"]) == end
    assert choose(value, {"momentum": 1, "epochs": 2}) == end
