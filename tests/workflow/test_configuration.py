"""A mistake in the configuration stops before any work, with one message that names the key or file and the way out."""

import json
import re
from collections import Counter
from dataclasses import MISSING, fields
from functools import reduce
from pathlib import Path

import pytest
import yaml
from snakemake.utils import validate

from scap.criterion.autoencoder import AutoencoderSettings
from scap.criterion.fusion import CriterionSettings
from scap.data.sources import RAW_FILES
from scap.models.names import PRUNABLE
from scap.training.settings import TrainingSettings
from workflow.configuration import ConfigurationError, check_references, check_schema

ROOT = Path(__file__).parents[2]
CONFIG = "config/config.yaml"
SCHEMA = json.loads((ROOT / "config/schema.json").read_text())
DIGITS = "datasets:\n  digits: {source: digits}"
CIFAR_FILES = RAW_FILES["cifar10"]


def check(config):
    """As workflow/rules/common.smk does it."""
    check_schema(config, SCHEMA)
    validate(config, str(ROOT / "config/schema.json"))
    check_references(config)


@pytest.fixture
def config():
    """The project's configuration, with no part shared between two places."""
    return json.loads(json.dumps(yaml.safe_load((ROOT / CONFIG).read_text())))


def test_the_projects_configuration_is_valid(config):
    check(config)


AT_THE_KEY = [
    ("comparisons.quickstart.0.thresholds.1", 1.5, "1.5 is greater than the maximum of 1. Threshold."),
    ("comparisons.quickstart.0.thresholds.0", -0.1, "-0.1 is less than the minimum of 0. Threshold."),
    ("comparisons.quickstart.0.seeds.0", "one", "'one' is not of type 'integer'. Seed."),
    ("comparisons.quickstart.0.tracks", ["papre"], "'papre' is not in networks.vgg16-digits.finetuning; did you mean 'paper'?"),
    ("comparisons.quickstart.0.networks", ["lenet"], "'lenet' is not in networks; choose one of vgg16-digits, vgg16-cifar10, "),
    ("comparisons.quickstart.0.criteria", ["scap", "l1-onw"], "'l1-onw' is not in criteria; did you mean 'l1-own'?"),
    ("criteria.scap.alpha", 1.01, "1.01 is greater than the maximum of 1. Weight of the fidelity term"),
    ("criteria.scap.alpha", -0.5, "-0.5 is less than the minimum of 0. Weight of the fidelity term"),
    ("criteria.scap.fusion", "sum", "'sum' is not one of ['additive', 'multiplicative', "),
    ("criteria.scap.autoencoder", "tanh9", "'tanh9' is not in autoencoders; did you mean 'tanh8'?"),
    ("criteria.scap", {"method": "scap"}, "method scap needs 'autoencoder'; name an entry of autoencoders"),
    ("criteria.random.widths_of", "scrap", "'scrap' is not in criteria; did you mean 'scap'?"),
    ("criteria.random.widths_of", "l1", "'l1' has its widths from another criterion; name that one"),
    ("criteria.l1.magnitude_of", "rms", "'rms' needs method scap, which records activations"),
    (
        "networks.vgg16-digits.architecture",
        "vgg",
        "'vgg' is not one of ['vgg16', 'resnet20', 'resnet32', 'resnet44', 'resnet56']. Architecture",
    ),
    ("networks.vgg16-digits.layers", ["conv6_1"], "'conv6_1' is not in the layers of vgg16; did you mean 'conv"),
    ("networks.vgg16-digits.dataset", "cifar-10", "'cifar-10' is not in datasets; did you mean 'cifar10'?"),
    ("networks.vgg16-digits.baseline", {"epochs": 1}, "'batch_size' is a required property. Training of the baseline."),
    ("autoencoders.tanh8.calibration", "defualt", "'defualt' is not in calibrations; did you mean 'default'?"),
    ("datasets.cifar10", {"source": "cifar10"}, "'root' is missing; name the folder of the official files"),
    ("targets.token", ["tokens"], "'tokens' is not in comparisons or studies; did you mean 'token'?"),
    ("studies.half-readings.network", "half", "'half' is not in networks; choose one of"),
    ("studies.half-readings.criteria", ["ranked-rms", "scap"], "'ranked-rms' stands first and all are compared with the L1"),
    ("studies.half-readings.criteria", ["skap"], "'skap' is not in criteria; did you mean 'scap'?"),
]
AT_ITS_ENTRY = [
    ("networks.vgg16-digits.baseline.epoch", 3, "unknown key 'epoch'; did you mean 'epochs'?"),
    ("comparisons.quickstart.0.threshold", [1], "unknown key 'threshold'; did you mean 'thresholds'?"),
    ("criteria.scap.colour", 1, "unknown key 'colour'; the keys are method, autoencoder, fusion, alpha, "),
    ("criteria.My_Criterion", {"method": "l1"}, "'My_Criterion' cannot be a name; use lower-case letters, digits and "),
    ("criteria.l1-own.uniform", True, "'uniform' needs 'widths_of'; name the criterion whose MACs it meets"),
]


def refusal(config, path, value):
    """The one line that says why the configuration, with this value at this path, is refused."""
    *parents, key = [int(part) if part.isdigit() else part for part in path.split(".")]
    reduce(lambda entry, parent: entry[parent], parents, config)[key] = value
    with pytest.raises(ConfigurationError) as error:
        check(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("path", "value", "message"), AT_THE_KEY)
def test_a_wrong_value_is_named(config, path, value, message):
    assert refusal(config, path, value).startswith(f"config: {path}: {message}")


@pytest.mark.parametrize(("path", "value", "message"), AT_ITS_ENTRY)
def test_a_wrong_key_is_named(config, path, value, message):
    assert refusal(config, path, value).startswith(f"config: {path.rpartition('.')[0]}: {message}")


def test_a_section_misspelt_is_named(config):
    config["criterions"] = config.pop("criteria")
    with pytest.raises(
        ConfigurationError, match=r"^config: the top level: unknown key 'criterions'; did you mean 'criteria'\?$"
    ):
        check(config)


def test_a_comparison_needs_the_method_itself(config):
    """In the frequency domain: the figure shows a spectrum."""
    expected = (
        "config: comparisons.quickstart: the figure 'method' needs a criterion of method scap whose autoencoder is not of "
        "'domain: space'; add one"
    )
    for criteria in (["l1", "random"], ["scap-space", "l1"]):
        assert refusal(config, "comparisons.quickstart.0.criteria", criteria) == expected


def refused(project):
    """What snakemake says to a configuration that it refuses: something short, and nothing is made."""
    output = project.snakemake("--dry-run", succeeds=False)
    assert "Traceback (most recent call last)" not in output
    assert len(output.splitlines()) < 30
    assert not any((project / name).exists() for name in ("results", "logs"))
    return output


@pytest.fixture(scope="module")
def fresh(new_project):
    return new_project()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 0.75", "alhpa: 0.75", "config: criteria.scap: unknown key 'alhpa'; did you mean 'alpha'?"),
        ("[scap, scap-second, l1,", "[scap, scap-3, l1,", "config: comparisons.quick.0.criteria: 'scap-3' is not in criteria"),
        ("{source: digits}", "{source: cifar10}", "config: datasets.digits: 'root' is missing; name the folder"),
        (
            "{source: digits}",
            "{source: cifar10, root: nowhere, download: false}",
            "config: datasets.digits: nowhere/cifar-10-batches-py/data_batch_1 is missing; put the official files there",
        ),
    ],
)
def test_snakemake_refuses_a_mistake(fresh, old, new, message):
    with fresh.edited(CONFIG, old, new):
        assert message in refused(fresh)


@pytest.mark.parametrize("download", ["true", "false"])
def test_snakemake_refuses_damaged_data(fresh, download):
    for name in CIFAR_FILES:
        (fresh / "damaged" / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / "damaged" / name).write_bytes(b"not what was published")
    with fresh.edited(CONFIG, "{source: digits}", f"{{source: cifar10, root: damaged, download: {download}}}"):
        output = refused(fresh)
    assert re.search(r"damaged/cifar-10-batches-py/data_batch_1: damaged \(MD5 .*\); delete it and download again", output)


def test_a_small_threshold_is_planned(fresh):
    """Python writes it as 1e-05."""
    with fresh.edited(CONFIG, "thresholds: [0.5]", "thresholds: [0.00001]"):
        assert "results/tiny/seed0/scap/threshold-1e-05/pruned.safetensors" in fresh.snakemake("--dry-run")


@pytest.fixture(scope="module")
def shipped(new_project):
    """The project with its own configuration, and no data."""
    return new_project(None)


@pytest.mark.parametrize(
    ("target", "counts"),
    [
        ("all", {"baseline": 1, "autoencoder": 13}),
        ("token", {"download_cifar10": 1, "baseline": 1, "autoencoder": 13}),
        # Three seeds, each with one baseline, 13 spectra and 13 autoencoders for all its 21 points and 27 runs.
        (
            "paper",
            {"download_cifar10": 1, "data": 1}
            | dict.fromkeys(("baseline", "evaluate_baseline", "activations"), 3)
            | dict.fromkeys(("spectrum", "autoencoder"), 3 * 13)
            | {"scores": 3 * 6, "prune": 3 * 21, "finetune": 3 * 27, "evaluate": 3 * 27, "table": 2},
        ),
        ("ablations", {"download_cifar10": 1, "baseline": 3}),
        ("half", {"download_cifar10": 1, "baseline": 3}),
        ("quarter", {"download_cifar10": 1, "baseline": 3}),
    ],
)
def test_all_targets_can_be_planned(shipped, target, counts):
    output = shipped.snakemake(target, "--dry-run", "--quiet", "rules")
    planned = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    assert counts.items() <= planned.items()
    assert "download_cifar10" in counts or not any(rule.startswith("download") for rule in planned)


@pytest.mark.parametrize(
    ("target", "groups"),
    [
        ("all", {"layer": 4, "scores": 1, "run": 9, "report": 1}),  # and four by themselves: 19 submissions
        ("paper", {"layer": 10, "scores": 2, "run": 63, "report": 2}),  # and 11 by themselves: 88
    ],
)
def test_few_jobs_are_submitted_to_slurm(shipped, target, groups):
    output = shipped.snakemake(target, "--dry-run", "--workflow-profile", "profiles/slurm")
    assert Counter(re.findall(r"^\[[^\]]*\] Group job (\w+)", output, re.MULTILINE)) == groups
    alone = {"data", "baseline", "evaluate_baseline", "activations", "download_cifar10", target}
    assert set(re.findall(r"^(?:local)?rule (\w+):", output, re.MULTILINE)) <= alone


def entries(section):
    return SCHEMA["properties"][section]["additionalProperties"]["properties"]


TRACK = entries("networks")["finetuning"]["additionalProperties"]["properties"]
SETTINGS = [
    (AutoencoderSettings, entries("autoencoders"), {"calibration"}, set()),
    (CriterionSettings, entries("criteria"), {"autoencoder", "widths_of", "uniform"}, set()),
    (TrainingSettings, TRACK, {"start"}, set()),
    (TrainingSettings, entries("networks")["baseline"]["properties"], set(), {"distillation", "temperature"}),
]


@pytest.mark.parametrize(("settings", "properties", "more", "fewer"), SETTINGS)
def test_the_schema_has_the_keys_of_the_settings(settings, properties, more, fewer):
    """`more` are those that the workflow reads itself; a baseline has no teacher."""
    assert set(properties) - more == {field.name for field in fields(settings)} - fewer


@pytest.mark.parametrize(("settings", "properties", "more", "fewer"), SETTINGS)
def test_the_schema_has_the_defaults_of_the_settings(settings, properties, more, fewer):
    """But `method`, which a criterion must name."""
    defaults = {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    stated = {key: entry["default"] for key, entry in properties.items() if "default" in entry and key not in more}
    assert stated == {key: value for key, value in defaults.items() if key not in fewer | {"method"}}


@pytest.mark.parametrize(("settings", "properties", "more", "fewer"), SETTINGS)
def test_the_settings_take_what_the_schema_allows(settings, properties, more, fewer):
    needed = {"epochs": 1, "batch_size": 1, "learning_rate": 1} if settings is TrainingSettings else {}
    for key in set(properties) - more:
        for value in properties[key].get("enum", []):
            settings(**needed, **{key: value})
        for bound in ("minimum", "maximum"):
            if bound in properties[key]:
                settings(**needed | {key: properties[key][bound]})


def test_the_schema_knows_all_data_sets_and_architectures():
    assert entries("datasets")["source"]["enum"] == list(RAW_FILES)
    assert entries("networks")["architecture"]["enum"] == list(PRUNABLE)


def subschemas(schema, path=""):
    """All parts of a schema that stand for a value, with their paths."""
    yield path, schema
    for key, part in schema.get("properties", {}).items():
        yield from subschemas(part, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from subschemas(schema[key], f"{path}.*")


def test_every_key_is_described():
    assert [path for path, schema in subschemas(SCHEMA) if not schema.get("description", "").endswith(".")] == []


def test_no_object_takes_keys_that_are_not_described():
    objects = [(path, schema) for path, schema in subschemas(SCHEMA) if schema.get("type") == "object"]
    assert len(objects) > 15
    assert [path for path, schema in objects if schema.get("additionalProperties", True) is True] == []
