"""Any configuration is accepted, and can then be planned, or ends with one line that names the mistake."""

import copy
import json
import math
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tiny import TINY

from workflow import schema
from workflow.configuration import checked
from workflow.lineage import Lineage, size_of
from workflow.yaml_files import ConfigurationError, read_yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / schema.PATH).read_text())
TREE = json.loads(json.dumps(yaml.safe_load(TINY)))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "6"))  # for each of the two tests
ODD = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 33, 10**6, 2**32, 2**70, -0.0, 0.0, 0.5, 1.0, 2.0, 1e-9, 1e30, math.nan, math.inf),
    *(
        "",
        "a",
        "none",
        "own",
        "uniform",
        "scap",
        "l1",
        "tiny",
        "digits",
        "all",
        "baseline",
        "x\n",
        "a b",
        "{a}",
        "/",
        "..",
        "1e-3",
    ),
    *(
        "yes",
        "0.5",
        "a" * 60,
        "ä",
        "\x00",
        "timm:",
        "torchvision:x",
        "a.py:f",
        ":",
        [],
        {},
        [[]],
        [None],
        ["scap"],
        [0.5],
        [1, 1],
    ),
    *({"a": 1}, {"like": "scap"}, {"like": "l1"}, {5: 1}, {"terms": {"l1": 1}}, {"how": "full"}, {"l1": 1}, {"file": "a"}),
    *("folder", "DEFAULT", {"source": "folder", "root": "a"}, {"source": "folder", "root": "a", "size": 300}),
]
KEYS = [*ODD[22:38], "like", "terms", "weights", "normalise", "thresholds", "macs", "layers", "start", "small_images", 5, None]


def places(value, path=()):
    """The path of every value in a tree."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def values(value):
    """Values near to one that is there, odd values, and other parts of the tree."""
    near = [value]
    if isinstance(value, int | float):
        near = [value + 1, value * 2, value / 2, -value, value // 2 if isinstance(value, int) else round(value, 1)]
    elif isinstance(value, str):
        near = [
            "scap",
            "l1",
            "uniform",
            "uniform-l1",
            "short",
            "none",
            "full",
            "conv1_2",
            "tradeoff",
            "sensitivity",
            "min-max",
            "linear",
        ]
    elif isinstance(value, list):
        near = [[*value, *value], value[:1], value[1:], value[::-1], [*value, "scap"], [*value, 0.25], [*value, "conv3_1"]]
    elif isinstance(value, dict) and value:
        near = [value | {"like": "scap"}, dict(list(value.items())[:-1]), value | {"reverse": True}, value | {"seed": 4}]
    parts = st.sampled_from(list(places(TREE))[1:]).map(lambda path: at(TREE, path))
    others = st.one_of(st.sampled_from(ODD), parts, st.integers(-3, 3000), st.floats(-1, 2), st.text(max_size=8))
    return st.one_of(st.sampled_from(near), others).map(copy.deepcopy)


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def mutations(draw):
    """A configuration in which up to three values were replaced, removed, doubled or put under another key."""
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        *above, key = draw(st.sampled_from([path for path in places(tree) if path] or [("criteria",)]))
        parent = at(tree, above)
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
        if change == "replace":
            parent[key] = draw(values(parent[key]))
        elif change == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(draw(values(parent[key])))
        elif change == "rename":
            parent[draw(st.sampled_from(KEYS))] = parent.pop(key)
        else:
            parent[draw(st.sampled_from(KEYS))] = draw(values(parent[key]))
        if not tree:
            break
    return tree


def outcome(function, *arguments):
    """Of a call: accepted, or refused in one line."""
    message = ""
    try:
        function(*arguments)
    except ConfigurationError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 1500
    return "refused" if ": " in message else f"accepted{message}"


def plan(tree):
    """Check a configuration; one that is accepted names every file that it makes."""
    before = copy.deepcopy(tree)
    try:
        config = checked(tree, SCHEMA)
    finally:
        assert repr(tree) == repr(before)
    lineage = Lineage(config)
    for target in config["targets"]:
        assert lineage.target(target)
    for comparison in config["comparisons"]:
        assert all(size_of(run["size"]) for run in lineage.runs(comparison))
        for figure in config["comparisons"][comparison]["figures"]:
            assert lineage.figure_tables(comparison, figure)


@pytest.fixture(scope="module")
def counts():
    """Prints at the end how many cases were accepted and refused."""
    found = {"configurations": Counter(), "files": Counter()}
    yield found
    for name, count in found.items():
        print(f"\n{name}: {count['accepted']} accepted, {count['refused']} refused", end="")


def run_for_a_while(strategy, check):
    """Try cases of a strategy for some seconds; hypothesis shrinks what fails."""
    end, rounds = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        few = settings(max_examples=20, database=None, suppress_health_check=[*HealthCheck])
        seed(rounds)(few(given(strategy)(check)))()
        rounds += 1


def test_any_configuration_is_accepted_or_refused_in_one_line(counts):
    assert outcome(plan, TREE) == "accepted"
    run_for_a_while(mutations(), lambda case: counts["configurations"].update([outcome(plan, case)]))
    assert counts["configurations"]["accepted"] > 0
    assert counts["configurations"]["refused"] > 10


@st.composite
def texts(draw):
    """The text of a configuration with a few pieces of it replaced, and as bytes in some encoding."""
    text = TINY
    pieces = [
        "",
        " ",
        "\n",
        "\t",
        ":",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "<<: ",
        "!!",
        "!!set ",
        "'",
        '"',
        "#",
        "on",
        "010",
        "1:30",
    ]
    pieces += [
        "2026-01-01",
        "~",
        "? ",
        "|",
        ">",
        "%",
        "@",
        "---\n",
        "\u00e4",
        "\x07",
        "=",
        "1e5",
        ".nan",
        "0x10",
        "null: 1\n",
        "a: &a [*a]\n",
    ]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(st.sampled_from(pieces)) + text[start + draw(st.integers(0, 12)) :]
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])))


def test_any_file_is_read_or_refused_in_one_line(counts, tmp_path):
    def read_and_plan(content):
        (tmp_path / "config.yaml").write_bytes(content)
        plan(read_yaml(tmp_path / "config.yaml"))

    assert outcome(read_and_plan, TINY.encode()) == "accepted"
    run_for_a_while(texts(), lambda case: counts["files"].update([outcome(read_and_plan, case)]))
    assert counts["files"]["accepted"] > 0
    assert counts["files"]["refused"] > 10
