"""A mistake in the configuration stops before any work, with one message that names the key or file and how to fix it."""

import json
import math
import re
from dataclasses import fields
from functools import reduce
from pathlib import Path

import pytest
import yaml
from tiny import TINY

from scap.data.settings import FolderSettings
from scap.data.sources import FOLDER, RAW_FILES
from scap.pruning.next_layers.least_squares import LARGEST_RIDGE
from workflow import schema
from workflow.configuration import checked, load_configuration, merge
from workflow.lineage import Lineage, size_of
from workflow.network_checks import folder_settings
from workflow.references import check_references
from workflow.yaml_files import ConfigurationError, read_yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / schema.PATH).read_text())


@pytest.fixture
def tiny():
    """The tiny experiment as its file has it, with no part shared between two places."""
    return json.loads(json.dumps(yaml.safe_load(TINY)))


def at(config, path):
    """What stands at a path."""
    return reduce(lambda entry, key: entry[int(key) if isinstance(entry, list) else key], path.split("."), config)


def with_value(config, path, value):
    parent, _, key = path.rpartition(".")
    entry = at(config, parent) if parent else config
    entry[int(key) if isinstance(entry, list) else key] = value
    return config


def refusal(config):
    """The one line that says why a configuration is refused."""
    with pytest.raises(ConfigurationError) as error:
        checked(config, SCHEMA)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500
    return str(error.value)


def test_the_projects_configuration_is_valid_and_can_be_planned():
    config = load_configuration(ROOT / "config")
    lineage = Lineage(config)
    for target in config["targets"]:
        files = lineage.target(target)
        assert files
        assert len(set(files)) == len(files)


def test_the_schema_is_made_from_the_settings():
    """A file that was edited by hand, or is older than the settings: python -m workflow.schema."""
    assert (ROOT / schema.PATH).read_text() == schema.text()


QUICK = "comparisons.quick.runs.0"
TRAINING = "networks.tiny.baseline"
AT_THE_KEY = [
    (f"{QUICK}.thresholds.0", 1.5, "1.5 is greater than the maximum of 1. Thresholds: channels that score as much are kept."),
    (f"{QUICK}.thresholds.0", -0.1, "-0.1 is less than the minimum of 0. Thresholds"),
    (f"{QUICK}.thresholds.0", math.nan, "nan is no number to be used here"),
    (f"{QUICK}.thresholds.0", -0.0, "-0.0 is no number to be used here"),
    (f"{QUICK}.thresholds.0", "0.5", "'0.5' is not of type 'number'"),
    (f"{QUICK}.thresholds", [0.5, 0.5], "[0.5, 0.5] has non-unique elements"),
    (f"{QUICK}.thresholds", [1, 1.0], "[1, 1.0] has non-unique elements"),
    (f"{QUICK}.macs", [0], "0 is less than or equal to the minimum of 0"),
    (f"{QUICK}.params", [1.01], "1.01 is greater than the maximum of 1"),
    (f"{QUICK}.seeds.0", "one", "'one' is not of type 'integer'. Seeds of training and calibration."),
    (f"{QUICK}.seeds.0", 1.0, "1.0 is not of type 'integer'"),
    (f"{QUICK}.seeds.0", True, "True is not of type 'integer'"),
    (f"{QUICK}.seeds.0", 2**32, "4294967296 is greater than the maximum of 4294967295"),
    (f"{QUICK}.seeds.0", -1, "-1 is less than the minimum of 0"),
    (f"{QUICK}.seeds", [], "[] should be non-empty"),
    (f"{QUICK}.networks", ["tinny"], "'tinny' is not in networks; did you mean 'tiny'?"),
    (f"{QUICK}.criteria", ["scap", "skap"], "'skap' is not in criteria; did you mean 'scap'?"),
    (f"{QUICK}.widths", ["uniform-skap"], "'uniform-skap' is not in own, uniform, criteria; did you mean 'uniform-scap'?"),
    (f"{QUICK}.widths", [], "is empty; name one at least"),
    (f"{QUICK}.compensations", ["ful"], "'ful' is not in compensations; did you mean 'full'?"),
    (f"{QUICK}.schedules", ["shrot"], "'shrot' is not in networks.tiny.finetuning; did you mean 'short'?"),
    ("criteria.scap.terms", {"fidelity": 1.0, "l1": math.inf}, "inf is no number to be used here"),
    ("criteria.scap.fusion", "additive", "'additive' is not one of ['sum', 'product']. How the terms are fused."),
    ("criteria.scap.seed", 2.0, "2.0 is not of type 'integer'"),
    ("criteria.scap.reverse", 1, "1 is not of type 'boolean'"),
    ("criteria.scap.autoencoder.bottleneck", 2.5, "2.5 is not of type 'integer'"),
    (
        "criteria.scap.autoencoder.bottleneck",
        5000,
        "5000 is more than the 128 spectra of conv1_1 of tiny (32 images, 4 channels)",
    ),
    ("criteria.scap.autoencoder.explained", 1, "1 is greater than or equal to the maximum of 1"),
    ("criteria.conditional.calibration.images", 1, "conditional needs 2 at least, not 1; give more"),
    ("compensations.full.images", 1, "1 is less than the minimum of 2"),
    ("compensations.full.ridge", 1e300, "1e+300 is greater than the maximum of 1000000.0"),
    ("networks.tiny.normalisation.mean", [0.5, 0.5, 0.5], "3 numbers, but the images of digits have 1 channel(s); give one"),
    ("networks.tiny.normalisation.std", [], "[] should be non-empty"),
    ("networks.tiny.normalisation.mean.0", 1.5, "1.5 is greater than the maximum of 1"),
    ("networks.tiny.normalisation.std.0", 255, "255 is greater than the maximum of 1"),
    ("criteria.scap.calibration.images", 513, "513 are more than the 512 training images of tiny"),
    ("criteria.conditional.calibration.images", 513, "513 are more than the 512 training images of tiny"),
    ("compensations.full.images", 513, "513 are more than the 512 training images of tiny"),
    ("compensations.none.how", "full", "this name stands for no compensation; choose another name"),
    ("networks.tiny.architecture", "vgg", "'vgg' is unknown; did you mean 'vgg16'?"),
    ("networks.tiny.layers", ["conv\n"], "holds a brace, line break"),
    ("networks.tiny.architecture", "mine.py:build", "there is no file mine.py"),
    ("networks.tiny.layers", ["conv6_1"], "'conv6_1' is not in the layers of vgg16; did you mean 'conv"),
    ("networks.tiny.layers", [], "is empty; name one layer at least"),
    ("networks.tiny.dataset", "digit", "'digit' is not in datasets; did you mean 'digits'?"),
    ("networks.tiny.width", 0.001, "0.001 is less than the minimum of 0.02"),
    ("networks.tiny.width", 1e30, "1e+30 is greater than the maximum of 8"),
    ("networks.tiny.holdout", 1437, "digits has 1437 training images; leave some to train on"),
    ("networks.tiny.train_images", 1400, "digits has 1373 left beside the holdout; give fewer"),
    ("networks.tiny.multiple", 1000, "1000 is too large, as no layer has more than 32 channels: nothing could be pruned"),
    ("networks.tiny.min_channels", 33, "33 is too large, as no layer has more than 32 channels: nothing could be pruned"),
    ("networks.tiny.gpu", 65, "65 is greater than the maximum of 64"),
    ("networks.tiny.coupled", "yes", "'yes' is not of type 'boolean'. Prune groups of layers that must lose"),
    ("networks.tiny.finetuning.short.rounds", 0, "0 is less than the minimum of 1. Prune and train in so many rounds"),
    ("networks.tiny.finetuning.short.rounds", 2.5, "2.5 is not of type 'integer'"),
    ("criteria.l1.together", "min", "'min' is not one of ['mean', 'sum', 'max']. How the values of coupled layers"),
    (TRAINING, {"epochs": 1}, "'batch_size' is a required property. Training of the baseline"),
    (f"{TRAINING}.batch_size", 2.0, "2.0 is not of type 'integer'. Images per step."),
    (f"{TRAINING}.batch_size", 513, "513 is more than 512; give less"),
    (f"{TRAINING}.crop", 32, "32 is more than 31; give less"),
    (f"{TRAINING}.cutout", 33, "33 is more than 32; give less"),
    (f"{TRAINING}.small_images", [33], "33 is more than the 32 pixels of an image; give less"),
    (f"{TRAINING}.momentum", 1, "1 is greater than or equal to the maximum of 1"),
    (f"{TRAINING}.label_smoothing", 1, "1 is greater than or equal to the maximum of 1"),
    (f"{TRAINING}.learning_rate", 0, "0 is less than or equal to the minimum of 0"),
    (f"{TRAINING}.distillation", 0.5, "a baseline has no teacher; leave it out"),
    ("networks.tiny.finetuning.short.batch_size", 513, "513 is more than 512; give less"),
    ("networks.tiny.finetuning.short.flip", "yes", "'yes' is not of type 'boolean'"),
    ("networks.tiny.finetuning.none", {"epochs": 1, "batch_size": 1, "learning_rate": 1}, "this name stands for no training"),
    ("datasets.digits", {"source": "cifar10"}, "'root' is missing; name the folder of the official files"),
    ("datasets.digits", {"source": "cifar10", "root": ""}, "'root' is missing; name the folder of the official files"),
    ("datasets.digits.source", "cifar-10", "'cifar-10' is not one of ['digits', 'cifar10',"),
    ("datasets.digits.root", "a\nb", "'a\\nb' holds a brace, line break or control character"),
    ("datasets.digits.root", "{seed}", "'{seed}' holds a brace, line break or control character"),
    ("datasets.digits.root", "a" * 1001, f"'{'a' * 40}' is longer than 1000 letters"),
    ("datasets.digits", {"source": "cifar10", "root": "~/data"}, "'~/data': '~' would be a folder of this name, not your home"),
    ("datasets.digits", {"source": "folder", "root": "~"}, "'~': '~' would be a folder of this name, not your home"),
    ("datasets.digits.size", 32, "is for 'source: folder'; digits has images of one size"),
    (
        "datasets.digits",
        {"source": "folder"},
        "'root' is missing; name the folder of the images, with train/CLASS and",
    ),
    ("datasets.digits", {"source": "folder", "root": "a", "size": 300}, "resize is 256, less than size, 300"),
    ("networks.tiny.weights", 5, "5 is not of type 'object', 'string'"),
    ("targets.all", ["quik"], "'quik' is not in comparisons; did you mean 'quick'?"),
    ("targets.all", [], "names no comparison"),
    ("targets.baseline", ["quick"], "a rule has this name; choose another"),
    ("targets.figure", ["quick"], "a rule has this name; choose another"),
    ("criteria.own", {"terms": {"l1": 1}}, "'own' says where widths come from; choose another name"),
    ("criteria.uniform-mine", {"terms": {"l1": 1}}, "'uniform-mine' says where widths come from; choose another name"),
    ("criteria.scap-second.like", "skap", "'skap' is not in criteria; did you mean 'scap'?"),
    ("criteria.scap-second.like", 5, "5 is not in criteria; choose one of"),
    ("criteria.scap-second.like", ["scap"], "['scap'] is not in criteria; "),
    ("criteria.scap.like", "scap", "'scap' is like 'scap' itself"),
    ("criteria.l1.autoencoder", {"bottleneck": 4}, "is read by nothing here; it needs the term fidelity, or leave it out"),
    ("criteria.l1.seed", 1, "is read by nothing here; it needs the term random, or leave it out"),
    ("criteria.scap.autoencoder", {"seed": 1}, "seed: is read by nothing here; it needs 'start: random'"),
    (
        "criteria.scap.autoencoder",
        {"kind": "linear", "epochs": 3},
        "epochs: is read by nothing here; it needs 'kind: nonlinear'",
    ),
    ("compensations.mine", {"how": "none", "images": 64}, "images: is read by nothing here; it needs another 'how'"),
    ("compensations.mine", {"how": "batch-norm", "ridge": 1}, "ridge: is read by nothing here; it needs 'how:"),
    ("networks.tiny.finetuning.short.temperature", 2, "is read by nothing here; it needs 'distillation' above 0"),
    (f"{TRAINING}.temperature", 2, "is read by nothing here; it needs 'distillation' above 0"),
    ("datasets.digits.root", "data", "is read by nothing here; it needs another 'source'"),
]
AT_ITS_ENTRY = [
    (f"{TRAINING}.epoch", 3, "unknown key 'epoch'; did you mean 'epochs'?"),
    (f"{TRAINING}.rounds", 2, "unknown key 'rounds'; choose one of epochs, batch_size,"),
    (f"{TRAINING}.start", "pruned", "unknown key 'start'; choose one of epochs, batch_size,"),
    ("networks.tiny.finetuning.short.padding", "reflected", "padding 'reflected' with crop 0 would do nothing"),
    ("networks.tiny.finetuning.short.small_images", [16, 24], "small_images holds 2 sizes for 1 epochs"),
    (f"{QUICK}.threshold", [1], "unknown key 'threshold'; did you mean 'thresholds'?"),
    (f"{QUICK}.thresholds", [], "no size is given; list thresholds, macs, params or budgets"),
    ("criteria.scap.colour", 1, "unknown key 'colour'; choose one of terms, fusion, "),
    ("criteria.scap.method", "l1", "unknown key 'method'; choose one of terms, fusion, "),
    ("criteria.scap.terms", {"fidelty": 1}, "terms: 'fidelty' is unknown; did you mean 'fidelity'?"),
    ("criteria.scap.terms", {"l1": 0}, "terms: all weights are 0; give one of them a weight above 0"),
    ("criteria.scap.terms", {"l1": -1}, "terms: the weight of 'l1' is -1.0; it must be from 0 to 1e+06"),
    ("criteria.scap.terms", {"l1": 1e308}, "terms: the weight of 'l1' is 1e+308; it must be from 0 to 1e+06"),
    ("criteria.scap.terms", {}, "terms is {}; name one at least"),
    ("criteria.scap.normalise", {"rms": "raw"}, "normalise: 'rms' is no term of this criterion"),
    ("criteria.scap.normalise", {"l1": "maximum"}, "normalise: l1 'maximum' is unknown"),
    ("criteria.My_Criterion", {"terms": {"l1": 1}}, "'My_Criterion' cannot be a name; use at most 60 lower-case letters"),
    ("criteria.mine\n", {"terms": {"l1": 1}}, None),
    ("criteria.mine\nother", {"terms": {"l1": 1}}, None),
    (f"criteria.{'ab' * 150}", {"terms": {"l1": 1}}, f"'{'ab' * 20}' cannot be a name; use at most 60"),
    (f"criteria.{'a' * 60}", {"terms": {"l1": 1}}, f"the name '{'a' * 60}' repeats itself; choose another"),
    ("criteria.", {"terms": {"l1": 1}}, "'' cannot be a name"),
    ("networks.tiny.finetuning.Short_1", {"epochs": 1, "batch_size": 1, "learning_rate": 1}, "'Short_1' cannot be a name"),
    (f"networks.tiny.finetuning.{'a' * 50}", {"epochs": 1, "batch_size": 1, "learning_rate": 1}, "the name 'aaa"),
    ("networks.tiny.weights", {"file": "a.th"}, None),  # with a width
    ("comparisons.quick.figures", ["tradeof"], None),
    ("comparisons.sizes.figures", ["finetuning"], "'finetuning' draws trainings, but all schedules are 'none'"),
    ("criteria.l1.autoencoder", {"bottleneck": 0}, None),
]


@pytest.fixture
def normalised(tiny):
    """The tiny experiment with its normalisation spelt out."""
    return with_value(tiny, "networks.tiny.normalisation", {"mean": [0.3], "std": [0.4]})


@pytest.mark.parametrize(("path", "value", "message"), AT_THE_KEY)
def test_a_wrong_value_is_named(normalised, path, value, message):
    found = refusal(with_value(normalised, path, value))
    assert found.startswith(f"config: {path}")
    assert message in found


@pytest.mark.parametrize(("path", "value", "message"), AT_ITS_ENTRY)
def test_a_wrong_key_is_named(tiny, path, value, message):
    found = refusal(with_value(tiny, path, value))
    assert found.startswith(
        f"config: {path.rpartition('.')[0]}: {message}" if message else f"config: {path.rpartition('.')[0]}"
    )


def test_what_an_entry_has_from_another_may_be_idle(tiny):
    tiny["criteria"]["trained"] = {"terms": {"fidelity": 1}, "autoencoder": {"epochs": 3, "start": "random", "seed": 1}}
    tiny["criteria"]["linear"] = {"like": "trained", "autoencoder": {"kind": "linear"}}
    tiny["criteria"]["weights"] = {"like": "linear", "terms": {"l1": 1}}
    tiny["networks"]["tiny"]["finetuning"]["taught"] = {"like": "short", "distillation": 0.5, "temperature": 2}
    tiny["networks"]["tiny"]["finetuning"]["untaught"] = {"like": "taught", "distillation": 0}
    checked(tiny, SCHEMA)


@pytest.mark.parametrize("key", [5, None, True, 1.5, (1, 2)])
def test_a_key_that_is_not_text_is_named(tiny, key):
    tiny["criteria"][key] = {"terms": {"l1": 1}}
    assert refusal(tiny) == f"config: criteria: the key {key!r} is not text; quote it"


@pytest.mark.parametrize("section", ["datasets", "networks", "criteria", "comparisons", "targets"])
@pytest.mark.parametrize("value", [None, 5, "text", [], {}])
def test_a_section_that_holds_no_entries_is_named(tiny, section, value):
    assert refusal(tiny | {section: value}).startswith(f"config: {section}: ")


def test_a_section_misspelt_is_named(tiny):
    tiny["criterions"] = tiny.pop("criteria")
    assert refusal(tiny) == "config: the top level: unknown key 'criterions'; did you mean 'criteria'?"


@pytest.mark.parametrize("path", ["criteria.scap.terms.l1", f"{TRAINING}.learning_rate", f"{TRAINING}.epochs"])
def test_a_number_of_hundreds_of_digits_is_named(tiny, path):
    assert refusal(with_value(tiny, path, 10**400)).startswith(f"config: {path}: 1000000000")


def test_a_checkpoint_at_home_is_named_by_its_whole_path(tiny):
    tiny["networks"]["tiny"] |= {"width": 1, "weights": {"file": "~/mine.safetensors"}}
    assert refusal(tiny).startswith(
        "config: networks.tiny.weights.file: '~/mine.safetensors': '~' would be a folder of this name"
    )


def test_every_source_has_channels(tiny):
    """Of each source the right number of values passes, and another does not."""
    for source, channels in {"digits": 1, "fashion-mnist": 1, "cifar10": 3, "cifar100": 3, FOLDER: 3}.items():
        tiny["datasets"]["digits"] = {"source": source} | ({} if source == "digits" else {"root": "data"})
        tiny["networks"]["tiny"]["baseline"]["crop"] = 0
        for given in (1, 3):
            tiny["networks"]["tiny"]["normalisation"] = {"mean": [0.5] * given, "std": [0.5] * given}
            if given == channels:
                checked(tiny, SCHEMA)
            else:
                assert f"the images of digits have {channels} channel(s)" in refusal(tiny)


def test_the_largest_ridge_is_the_librarys():
    assert at(SCHEMA, "properties.compensations.additionalProperties.properties.ridge.maximum") == LARGEST_RIDGE


@pytest.mark.parametrize("name", ["data", "figures", "tables"])
def test_a_network_does_not_lie_among_other_results(tiny, name):
    """Its files would be taken for data sets, tables or figures: those in results/data are not published."""
    tiny["networks"][name] = {"like": "tiny"}
    assert f"networks.{name}: results/{name}/ holds other results; choose another name" in refusal(tiny)


def test_a_criterion_that_reads_no_images_needs_none(tiny):
    """Its calibration has a default, which a small data set need not fill; one job that makes all scores always draws them."""
    tiny["networks"]["tiny"] |= {"train_images": 64}
    grid = at(tiny, QUICK) | {"criteria": ["l1"], "widths": ["own"], "thresholds": [], "macs": [0.5]}
    tiny["comparisons"], tiny["targets"] = {"quick": {"runs": [grid]}}, {"all": ["quick"]}
    checked(tiny, SCHEMA)
    few = "criteria.l1.calibration.images: 256 are more than the 64 training images of tiny"
    assert few in refusal(with_value(tiny, "criteria.l1.terms", {"l1": 1, "rms": 1}))
    tiny["criteria"]["l1"]["terms"] = {"l1": 1}
    assert few in refusal(with_value(tiny, "networks.tiny.finetuning.short.rounds", 2))
    tiny["networks"]["tiny"]["finetuning"]["short"]["rounds"] = 1
    assert few in refusal(with_value(tiny, "networks.tiny.coupled", True))


def test_what_snakemake_makes_without_a_target_must_be_there(tiny):
    tiny["targets"] = {"paper": ["quick"]}
    assert refusal(tiny).startswith("config: targets: 'all' is missing")


@pytest.mark.parametrize(("key", "value"), [("figures", ["method"]), ("tables", ["method"])])
@pytest.mark.parametrize("criterion", [{"terms": {"l1": 1}}, {"terms": {"fidelity": 1}, "autoencoder": {"domain": "space"}}])
def test_the_figure_of_the_method_needs_spectra(tiny, key, value, criterion):
    tiny["criteria"]["scap"] = criterion
    tiny["comparisons"]["quick"] = {"runs": [at(tiny, QUICK) | {"criteria": ["scap"]}], "tables": [], "figures": [], key: value}
    assert refusal(tiny).startswith("config: comparisons.quick: 'method' needs a criterion with the term fidelity")


@pytest.mark.parametrize(("tables", "figures"), [(["sensitivity"], []), ([], ["sensitivity"])])
def test_the_sensitivity_needs_the_l1_norm_in_its_first_criterion(tiny, tables, figures):
    sizes = tiny["comparisons"]["sizes"]
    sizes["runs"] = [sizes["runs"][0] | {"criteria": ["conditional", "scap"]}]
    sizes |= {"tables": tables, "figures": figures}
    assert "put one with the term l1 before 'conditional'" in refusal(tiny)


def test_a_comparison_that_makes_nothing_is_named(tiny):
    tiny["comparisons"]["quick"] |= {"tables": [], "figures": []}
    assert refusal(tiny).startswith("config: comparisons.quick: names no table and no figure")


def test_the_bottleneck_fits_the_data_of_those_whose_widths_are_taken(tiny):
    tiny["criteria"]["scap"]["autoencoder"]["bottleneck"] = 129
    tiny["criteria"]["scap-second"]["autoencoder"]["bottleneck"] = 3
    tiny["comparisons"] = {"quick": {"runs": [at(tiny, QUICK) | {"criteria": ["l1"], "widths": ["scap"]}]}}
    tiny["targets"] = {"all": ["quick"]}
    assert refusal(tiny).startswith("config: criteria.scap.autoencoder.bottleneck: 129 is more than the 128 spectra")
    tiny["criteria"]["plain"] = {"like": "scap", "terms": {"l1": 1}}  # without the term, its autoencoder is never fitted
    at(tiny, QUICK)["widths"] = ["plain"]
    checked(tiny, SCHEMA)


def test_defaults_are_filled_in_where_they_are_left_out(tiny):
    config = checked(tiny, SCHEMA)
    assert config["criteria"]["l1"]["autoencoder"]["bottleneck"] == 8
    assert config["criteria"]["scap"]["autoencoder"]["kind"] == "nonlinear"
    assert config["networks"]["tiny"]["finetuning"]["short"]["start"] == "pruned"
    assert "start" not in config["networks"]["tiny"]["baseline"]
    assert at(config, QUICK)["compensations"] == ["none"]
    assert tiny == json.loads(json.dumps(yaml.safe_load(TINY)))  # what was given stays as it was


class TestVariants:
    """`like: NAME` plus differences."""

    def test_differences_are_merged_key_by_key_to_any_depth(self, tiny):
        tiny["criteria"]["deep"] = {"like": "scap", "autoencoder": {"kind": "linear"}}
        tiny["networks"]["other"] = {"like": "tiny", "width": 1, "finetuning": {"short": {"epochs": 9}}}
        config = checked(tiny, SCHEMA)
        assert config["criteria"]["deep"] == config["criteria"]["scap"] | {
            "autoencoder": config["criteria"]["scap"]["autoencoder"] | {"kind": "linear"}
        }
        assert config["networks"]["other"]["width"] == 1
        assert config["networks"]["other"]["finetuning"]["short"] == config["networks"]["tiny"]["finetuning"]["short"] | {
            "epochs": 9
        }

    @pytest.mark.parametrize(("key", "value"), [("terms", {"l1": 1}), ("normalise", {"l1": "max"})])
    def test_terms_and_their_scales_are_replaced_as_a_whole(self, tiny, key, value):
        tiny["criteria"]["scap"]["normalise"] = {"fidelity": "raw", "l1": "mean"}
        tiny["criteria"]["other"] = {"like": "scap", "normalise": {}} | {key: value}
        assert checked(tiny, SCHEMA)["criteria"]["other"][key] == value

    def test_lists_are_replaced_as_a_whole(self, tiny):
        tiny["networks"]["other"] = {"like": "tiny", "layers": ["conv1_1"]}
        assert checked(tiny, SCHEMA)["networks"]["other"]["layers"] == ["conv1_1"]

    def test_a_variant_of_a_variant(self, tiny):
        tiny["criteria"]["third"] = {"like": "scap-second", "reverse": True}
        config = checked(tiny, SCHEMA)
        assert config["criteria"]["third"] == config["criteria"]["scap-second"] | {"reverse": True}

    def test_schedules_and_comparisons_have_variants_too(self, tiny):
        tiny["networks"]["tiny"]["finetuning"]["long"] = {"like": "short", "epochs": 7}
        tiny["comparisons"]["again"] = {"like": "quick", "figures": ["scores"]}
        config = checked(tiny, SCHEMA)
        assert config["networks"]["tiny"]["finetuning"]["long"]["epochs"] == 7
        assert config["networks"]["tiny"]["finetuning"]["long"]["learning_rate"] == 0.05
        assert config["comparisons"]["again"]["runs"] == config["comparisons"]["quick"]["runs"]

    def test_a_variant_does_not_share_its_parts(self, tiny):
        tiny["criteria"]["same"] = {"like": "scap"}
        config = checked(tiny, SCHEMA)
        assert config["criteria"]["same"] == config["criteria"]["scap"]
        assert config["criteria"]["same"]["autoencoder"] is not config["criteria"]["scap"]["autoencoder"]

    def test_a_loop_is_named(self, tiny):
        tiny["criteria"] |= {"a": {"like": "b"}, "b": {"like": "c"}, "c": {"like": "a"}}
        assert refusal(tiny) == "config: criteria.c.like: 'a' is like 'c' itself"
        tiny["criteria"] = {"a": {"like": "b"}, "b": {"like": "c"}, "c": {"like": "b"}}
        assert refusal(tiny) == "config: criteria.c.like: 'b' is like 'c' itself"

    def test_an_unknown_name_is_named(self, tiny):
        tiny["networks"]["tiny"]["finetuning"]["long"] = {"like": "shrot"}
        assert (
            refusal(tiny) == "config: networks.tiny.finetuning.long.like: 'shrot' is not in networks.tiny.finetuning; "
            "did you mean 'short'?"
        )


class TestFiles:
    """Files that are put together."""

    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "experiments").mkdir()
        (tmp_path / "config.yaml").write_text(TINY)
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        return tmp_path

    def load(self, folder, *files, **values):
        return load_configuration(folder, [folder / name for name in files], values)

    def test_an_experiment_may_build_on_the_entries_of_other_files(self, folder):
        more = "criteria: {more: {like: scap, reverse: true}}\ntargets: {more: [quick]}"
        (folder / "experiments/more.yaml").write_text(more)
        config = self.load(folder)
        assert config["criteria"]["more"]["terms"] == config["criteria"]["scap"]["terms"]
        assert set(config["targets"]) == {"all", "more"}

    @pytest.mark.parametrize(
        "entry", ["criteria: {l1: {terms: {l1: 1}}}", "networks: {tiny: {like: tiny}}", "targets: {all: []}"]
    )
    def test_the_same_entry_in_two_files_is_refused(self, folder, entry):
        (folder / "experiments/more.yaml").write_text(entry)
        section, name = entry.split(":")[0], entry.split("{")[1].split(":")[0]
        with pytest.raises(ConfigurationError, match=rf"more\.yaml: {section}\.{name}: stands in .*config\.yaml too; rename"):
            self.load(folder)

    def test_numbers_on_the_command_line_come_as_text(self, folder):
        """Snakemake reads what stands inside a mapping of --config as text."""
        tiny = {"width": "0.125", "coupled": "false", "holdout": "32", "baseline": {"learning_rate": "1e-3"}}
        config = self.load(folder, networks={"tiny": tiny}, criteria={"l1": {"fusion": "product"}})
        network = config["networks"]["tiny"]
        assert (network["width"], network["coupled"], network["holdout"]) == (0.125, False, 32)
        assert (network["baseline"]["learning_rate"], config["criteria"]["l1"]["fusion"]) == (0.001, "product")
        with pytest.raises(ConfigurationError, match=r"config: networks\.tiny\.coupled: 'yes' can be read in two ways; write"):
            self.load(folder, networks={"tiny": {"coupled": "yes"}})
        with pytest.raises(ConfigurationError, match=r"config: networks\.tiny\.width: 'wide' is not of type 'number'"):
            self.load(folder, networks={"tiny": {"width": "wide"}})

    def test_a_file_of_the_users_goes_on_top(self, folder):
        """Entries are added or changed key by key; terms are replaced."""
        (folder / "mine.yaml").write_text(
            "criteria:\n  scap: {terms: {l1: 1}}\n  mine: {like: scap, terms: {fidelity: 1}, autoencoder: {tolerance: 1e-4}}\n"
            "networks: {tiny: {baseline: {epochs: 3}}}\n"
        )
        config = self.load(folder, "mine.yaml")
        assert config["criteria"]["scap"]["terms"] == {"l1": 1}
        assert config["criteria"]["scap"]["autoencoder"]["bottleneck"] == 2
        assert config["criteria"]["mine"]["autoencoder"]["tolerance"] == 0.0001
        assert config["networks"]["tiny"]["baseline"]["epochs"] == 3
        assert config["networks"]["tiny"]["baseline"]["batch_size"] == 64

    def test_the_last_of_several_files_wins_and_values_win_over_files(self, folder):
        for name, width in {"a.yaml": 1, "b.yaml": 2}.items():
            (folder / name).write_text(f"networks: {{tiny: {{width: {width}}}}}")
        assert self.load(folder, "a.yaml", "b.yaml")["networks"]["tiny"]["width"] == 2
        assert self.load(folder, "b.yaml", networks={"tiny": {"width": 0.5}})["networks"]["tiny"]["width"] == 0.5

    @pytest.mark.parametrize("place", ["config.yaml", "experiments/more.yaml", "mine.yaml"])
    def test_a_file_that_cannot_be_read_is_named_wherever_it_is(self, folder, place):
        (folder / place).write_text("criteria: {a: 1, a: 2}")
        with pytest.raises(ConfigurationError, match=rf"{Path(place).name}:1: the key 'a' stands here twice"):
            self.load(folder, "mine.yaml")

    def test_a_file_that_is_missing_is_named(self, folder):
        with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: cannot be read as YAML in UTF-8 \(.*No such file"):
            self.load(folder, "nowhere.yaml")


def test_merging_alters_neither_side():
    base, changes = {"a": {"b": 1, "terms": {"x": 1}}}, {"a": {"c": 2, "terms": {"y": 1}}}
    assert merge(base, changes) == {"a": {"b": 1, "c": 2, "terms": {"y": 1}}}
    assert base == {"a": {"b": 1, "terms": {"x": 1}}}


REFUSED = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", r":1: the key 'a' stands here twice"),
    "a key twice, deep": ("a: {b: {c: 1, c: 1}}\n", r":1: the key 'c' stands here twice"),
    "a merge twice": ("a: &a {x: 1}\nb: {<<: *a, <<: *a}\n", r":2: the key '<<' stands here twice"),
    "on as a key": ("a:\n  on: 1\n", r":2: a key is not text; quote it"),
    "a number as a key": ("5: 1\n", r":1: a key is not text; quote it"),
    "null as a key": ("~: 1\n", r":1: a key is not text; quote it"),
    "a date as a key": ("2026-01-01: 1\n", r":1: a key is not text; quote it"),
    "a list as a key": ("[a]: 1\n", r":1: a key is not text; quote it"),
    "on": ("a: on\n", r":1: on can be read in two ways"),
    "No": ("a: [No]\n", r":1: No can be read in two ways"),
    "octal": ("a: 010\n", r":1: 010 can be read in two ways"),
    "sexagesimal": ("a: 1:30\n", r":1: 1:30 can be read in two ways"),
    "sexagesimal fraction": ("a: 1:30.5\n", r":1: 1:30\.5 can be read in two ways"),
    "date": ("a: 2026-01-14\n", r":1: 2026-01-14 can be read in two ways"),
    "date and time": ("a: 2026-01-14 10:00:00\n", r":1: 2026-01-14 10:00:00 can be read in two ways"),
    "an anchor in itself": ("a: &a {b: *a}\n", ": an anchor contains itself"),
    "an anchor in itself, through a list": ("a: &a [1, [*a]]\n", ": an anchor contains itself"),
    "an alias of nothing": ("a: *b\n", r":1: found undefined alias"),
    "an object of Python": ("a: !!python/object:os.system {}\n", r":1: could not determine a constructor"),
    "half a mapping": ("a: {b: 1\n", r":2: expected ',' or '}'"),
    "a tab": ("a:\n\tb: 1\n", r":2: found character '\\t' that cannot start any token"),
    "a list": ("- a\n", r"holds no sections"),
    "text": ("a\n", r"holds no sections"),
    "nothing": ("", r"holds no sections"),
    "two documents": ("a: 1\n---\nb: 1\n", r":\d: "),
    "a number too long": (f"a: {'9' * 5000}\n", r"cannot be read as YAML"),
    "too deep": ("a: " + "[" * 3000, r"cannot be read as YAML|: "),
    "many aliases": (
        "a: &a0 [1]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
        "holds more",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_yaml_that_is_not_what_it_seems_is_refused_by_its_line(tmp_path, name):
    text, message = REFUSED[name]
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/mine\.yaml.*{message}") as error:
        read_yaml(tmp_path / "mine.yaml")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("content", "reason"),
    [("a: ä\n".encode("latin-1"), "utf-8"), ("a: 1\n".encode("utf-16"), "utf-8"), (b"a: \x00\n", "#x0000|null|special")],
)
def test_another_encoding_is_named(tmp_path, content, reason):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"mine\.yaml.*{reason}") as error:
        read_yaml(tmp_path / "mine.yaml")
    assert str(error.value).isprintable()


def test_yaml_as_people_mean_it(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        'a: {rate: 1e-3, many: 5E+2, quoted: "on", flag: true, text: "010", n: 10, share: .5, name: ä, day: "2026-01-14"}\n'
        "b: &b {x: 1, y: [1, 2]}\n"
        "c: {<<: *b, x: 2}\n"
        "d: *b\n"
    )
    found = read_yaml(tmp_path / "mine.yaml")
    assert found["a"] == {
        **{"rate": 0.001, "many": 500.0, "quoted": "on", "flag": True, "text": "010", "n": 10, "share": 0.5, "name": "ä"},
        "day": "2026-01-14",
    }
    assert found["c"] == {"x": 2, "y": [1, 2]}
    assert found["d"] == found["b"]
    assert found["d"] is not found["b"]  # one may be changed without the other
    assert found["d"]["y"] is not found["b"]["y"] is not found["c"]["y"]


def test_keys_may_be_merged_through_several_anchors(tmp_path):
    """Whatever the order in which YAML puts them together, a key that a merge brings in is not there twice."""
    (tmp_path / "mine.yaml").write_text(
        "a: {x: {deep: &deep {<<: &base {k: 1, l: 2}, k: 3}}}\nb: {<<: *deep, l: 4}\nc: [{<<: [*deep, *base], m: 5}]\n"
    )
    found = read_yaml(tmp_path / "mine.yaml")
    assert found == {"a": {"x": {"deep": {"k": 3, "l": 2}}}, "b": {"k": 3, "l": 4}, "c": [{"k": 3, "l": 2, "m": 5}]}


@pytest.mark.parametrize("value", [0.6, 0.5, 1, 0, 1e-5, 0.30000000000000004, 5e-324])
def test_a_size_has_one_spelling(tiny, value):
    grid = at(tiny, QUICK)
    grid["thresholds"] = [value]
    (size,) = {run["size"] for run in Lineage(checked(tiny, SCHEMA)).runs("quick") if run["criterion"] == "scap"}
    assert size_of(size) == {"threshold": value}


@pytest.mark.parametrize(
    ("size", "spelling"),
    [
        ("threshold-0.60", "threshold-0.6"),
        ("macs-1", "macs-1.0"),
        ("params-0.50", "params-0.5"),
        ("threshold-1e-5", "threshold-1e-05"),
        ("macs-0.10-params-0.5", "macs-0.1-params-0.5"),
        ("macs-1e-5-params-1", "macs-1e-05-params-1.0"),
    ],
)
def test_another_spelling_of_a_size_is_refused_with_the_right_one(size, spelling):
    with pytest.raises(ValueError, match=f"^{size}: write the number as {spelling}$"):
        size_of(size)


def test_two_budgets_are_one_size(tiny):
    grid = at(tiny, QUICK)
    del grid["thresholds"]
    grid["budgets"] = [{"macs": 0.0989, "params": 0.037}, {"params": 1, "macs": 1e-5}]
    sizes = [run["size"] for run in Lineage(checked(tiny, SCHEMA)).runs("quick") if run["criterion"] == "scap"]
    assert list(dict.fromkeys(sizes)) == ["macs-0.0989-params-0.037", "macs-1e-05-params-1.0"]
    assert [size_of(size) for size in dict.fromkeys(sizes)] == [{"macs": 0.0989, "params": 0.037}, {"macs": 1e-5, "params": 1}]


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"macs": 0.5, "params": 0}, {"macs": 0.5, "params": 0.5, "latency": 1}, 0.5])
def test_a_budget_that_is_not_two_shares_is_named(tiny, budget):
    at(tiny, QUICK)["budgets"] = [budget]
    with pytest.raises(ConfigurationError, match=r"comparisons\.quick\.runs.*budgets"):
        checked(tiny, SCHEMA)


@pytest.mark.parametrize(
    "size", ["threshold-0.5-params-0.5", "params-0.5-macs-0.5", "macs-2.0", "macs", "latency-0.5", "macs-0.5-"]
)
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"is no size; write threshold-0\.6"):
        size_of(size)


@pytest.mark.parametrize("size", ["macs-0.0", "params-0.0", "macs-0.5-params-0.0"])
def test_a_budget_of_nothing_is_refused(size):
    with pytest.raises(ValueError, match=f"^{size}: nothing would be left; give a share above 0$"):
        size_of(size)


def test_the_schema_knows_all_data_sets():
    assert entries("datasets")["source"]["enum"] == [*RAW_FILES, FOLDER]


def entries(section):
    return SCHEMA["properties"][section]["additionalProperties"]["properties"]


def subschemas(part, path=""):
    """All parts of a schema that stand for a value, with their paths."""
    yield path, part
    for key, inner in part.get("properties", {}).items():
        yield from subschemas(inner, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            yield from subschemas(part[key], f"{path}.{'*' if key == 'additionalProperties' else '#'}")


def test_every_key_is_described():
    """Entries of a section, and what a mapping or a list holds, are described by what holds them."""
    keys = [(path, part) for path, part in subschemas(SCHEMA) if not path.endswith(("*", "*.#"))]
    assert len(keys) > 80
    assert [path for path, part in keys if not part.get("description", "").endswith(".")] == []


def test_no_object_takes_keys_that_are_not_described():
    objects = [(path, part) for path, part in subschemas(SCHEMA) if "object" in part.get("type", "")]
    assert len(objects) > 15
    assert [path for path, part in objects if part.get("additionalProperties", True) is True] == []


BETWEEN = [
    (
        "networks.tiny.coupled",
        True,
        "comparisons.quick: 'method' needs a criterion with the term fidelity whose autoencoder is",
    ),
    (
        "networks.tiny.gpu",
        3,
        "networks.tiny.finetuning.short.batch_size: 64 does not divide by the 3 processes of 'gpu: 3'; give a multiple",
    ),
    (
        "networks.tiny.finetuning.short",
        {"epochs": 1, "batch_size": 8, "learning_rate": 1, "rounds": 3},
        "comparisons.quick.runs.0.thresholds: 'short' prunes in 3 rounds, each of which takes its part of a budget; give macs",
    ),
    (
        "networks.tiny.finetuning.short",
        {"epochs": 1, "batch_size": 8, "learning_rate": 1, "rounds": 3, "start": "scratch"},
        "networks.tiny.finetuning.short.rounds: 3 rounds prune by what training has made of the weights",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), BETWEEN)
def test_what_does_not_fit_together_is_named(tiny, path, value, message):
    assert refusal(with_value(tiny, path, value)).startswith(f"config: {message}")


def test_sensitivity_is_of_layers_that_go_alone(tiny):
    tiny["networks"]["tiny"]["coupled"] = True
    tiny["comparisons"]["quick"]["figures"] = ["tradeoff"]
    assert "comparisons.sizes: 'sensitivity' compares layers that go alone, but 'tiny' is coupled" in refusal(tiny)


def test_rounds_take_widths_from_no_other_criterion(tiny):
    tiny["networks"]["tiny"]["finetuning"]["short"]["rounds"] = 2
    grid = {**tiny["comparisons"]["quick"]["runs"][1], "thresholds": [], "macs": [0.5]}
    tiny["comparisons"] = {"quick": {"runs": [grid], "figures": ["tradeoff"]}}
    tiny["targets"] = {"all": ["quick"]}
    message = "comparisons.quick.runs.0.widths: 'short' prunes in 2 rounds, which have no scores of 'scap'; take own or uniform"
    assert message in refusal(tiny)


def test_a_run_in_rounds_lists_the_files_of_each(tiny):
    tiny["networks"]["tiny"] |= {"coupled": True, "layers": ["conv1_1"]}
    tiny["networks"]["tiny"]["finetuning"]["short"]["rounds"] = 2
    grid = {**tiny["comparisons"]["quick"]["runs"][0], "thresholds": [], "macs": [0.5]}
    tiny["comparisons"] = {"quick": {"runs": [grid], "figures": ["channels"]}}
    tiny["targets"] = {"all": ["quick"]}
    lineage = Lineage(checked(tiny, SCHEMA))
    run = lineage.first_run("quick")
    folder = "results/tiny/seed0/scap/widths-own/macs-0.5/compensation-none/short"
    files = {path.removeprefix(f"{folder}/") for path in lineage.run_files(run) if path.startswith(folder)}
    cut = {"pruned.safetensors", "channels.csv", "compensation.csv"}
    trained = {"finetuned.safetensors", "history.csv"}
    first = {f"rounds/1/{name}" for name in cut | trained}
    assert files == first | {f"rounds/2/{name}" for name in cut | {"scores.csv"}} | trained | {"metrics.json"}
    assert lineage.figure_tables("quick", "channels") == [f"{folder}/rounds/2/channels.csv"]
    assert not any("autoencoders" in path for path in lineage.run_files(run))


@pytest.mark.parametrize("layers", [None, ["layer1.0.conv1", "any.of.its.layers"]])
def test_a_coupled_network_may_leave_its_layers_to_the_trace(tiny, layers):
    tiny["networks"]["tiny"] |= {"architecture": "timm:test_resnet", "coupled": True, "layers": layers}
    del tiny["networks"]["tiny"]["width"]
    if layers is None:
        del tiny["networks"]["tiny"]["layers"]
    del tiny["comparisons"]["sizes"]
    tiny["comparisons"]["quick"]["figures"] = ["tradeoff"]
    tiny["targets"] = {"all": ["quick"]}
    assert Lineage(checked(tiny, SCHEMA)).layers("tiny") == (layers or [])


@pytest.fixture
def photos(tiny):
    """The tiny experiment on a folder of images, which is never opened here."""
    tiny["datasets"]["digits"] = {"source": "folder", "root": "nowhere", "size": 24, "resize": 24}
    del tiny["networks"]["tiny"]["baseline"]["crop"]
    return tiny


def test_settings_of_a_folder_have_one_source(photos):
    """Bounds and meaning are those of the library; no default stands where the data are others'."""
    for each in fields(FolderSettings):
        entry = entries("datasets")[each.name]
        assert each.metadata["description"][1:] in entry["description"]
        assert str(each.default) in entry["description"]
        assert "default" not in entry
    assert folder_settings(checked(photos, SCHEMA)["datasets"]["digits"]) == {
        **{"size": 24, "resize": 24, "smallest_crop": 0.08, "interpolation": "bilinear"}
    }


@pytest.mark.parametrize(
    ("path", "value", "images", "message"),
    [
        ("networks.tiny.holdout", 60, 60, "holdout: digits has 60 training images; leave some to train on"),
        ("networks.tiny.train_images", 512, 500, "train_images: digits has 436 left beside the holdout; give fewer"),
        ("networks.tiny.holdout", 437, 500, "baseline.batch_size: 64 is more than 63; give less"),
        (f"{TRAINING}.cutout", 25, None, "baseline.cutout: 25 is more than 24; give less"),
        (f"{TRAINING}.crop", 2, None, "baseline.crop: images of a folder are always cropped at random; leave it out"),
        ("networks.tiny.finetuning.short.crop", 2, None, "short.crop: images of a folder are always cropped at random"),
        ("compensations.full.images", 437, 500, "compensations.full.images: 437 are more than the 436 training images"),
    ],
)
def test_what_does_not_fit_a_folder_is_named(photos, path, value, images, message):
    """What depends on the number of its images, when they have been counted."""
    del photos["networks"]["tiny"]["train_images"]
    config = with_value(photos, path, value)
    if images is not None:
        config = checked(config, SCHEMA)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        checked(config, SCHEMA) if images is None else check_references(config, {"digits": images})


OWN = f"{Path(__file__)}:make"  # a file that is there


@pytest.mark.parametrize(
    ("architecture", "weights", "message"),
    [
        ("vgg16", "DEFAULT", "'DEFAULT' is nothing that vgg16 offers; give a checkpoint, {file: ...}"),
        ("timm:resnet18", "IMAGENET1K_V1", "give DEFAULT, or a checkpoint"),
        ("torchvision:resnet18", "own", "give DEFAULT, another name that it lists, or a checkpoint"),
        (OWN, "DEFAULT", "give own, or a checkpoint"),
        (
            "vgg16",
            {"file": "a", "leave_out": ["classifier"]},
            "'classifier' would stay untrained; give 'baseline', which",
        ),
        ("vgg16", None, "give 'baseline', its training, or 'weights', trained ones, or both"),
    ],
)
def test_weights_that_cannot_be_had_are_named(tiny, architecture, weights, message):
    network = tiny["networks"]["tiny"]
    network |= {"architecture": architecture, "weights": weights}
    for key in ("width", "baseline", *(["weights"] if weights is None else [])):
        del network[key]
    assert message in refusal(tiny)


@pytest.mark.parametrize(
    ("architecture", "weights"),
    [
        ("timm:resnet18", "DEFAULT"),
        ("torchvision:resnet18", "IMAGENET1K_V1"),
        (OWN, "own"),
        ("vgg16", {"file": "a", "leave_out": ["classifier"]}),
    ],
)
def test_weights_may_be_trained_further(tiny, architecture, weights):
    network = tiny["networks"]["tiny"]
    network |= {"architecture": architecture, "weights": weights}
    del network["width"]
    assert checked(tiny, SCHEMA)["networks"]["tiny"]["baseline"]["epochs"] == 8
