"""Networks of torchvision, timm and of one's own: built, refused with a reason, never fetched unasked."""

import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn

from scap.data.torchvision_cure import import_torchvision
from scap.errors import ScapError
from scap.models import names
from scap.models.build import build_network, check_logits
from scap.models.names import check_architecture
from scap.pruning.files import load_network, save_network
from scap.pruning.surgery import cut_network, prunable_layers

ROOT = Path(__file__).parents[2]
OWN = """
from dataclasses import dataclass
from torch import nn
from beside import block

@dataclass
class Settings:
    depth: "int" = 1

def network(classes, channels=6, broken=False):
    if broken:
        raise RuntimeError("two\\nlines")
    return nn.Sequential(*block(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

def any_arguments(**arguments):
    return nn.Linear(arguments["in_channels"], arguments["classes"])

def no_network():
    return 3

number = 3
"""
BESIDE = """
from torch import nn

def block(channels):
    return nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU()
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}"


@pytest.fixture
def hub(monkeypatch):
    """torchvision's downloads, answered by what the test puts there; by default there is no network."""
    answers = {}

    def download(url, *arguments, **keywords):
        if not answers:
            raise urllib.error.URLError("no route to host")
        return answers["state"]

    monkeypatch.setattr(sys.modules[f"{import_torchvision().models.__name__}._api"], "load_state_dict_from_url", download)
    return answers


@pytest.mark.parametrize("architecture", ["torchvision:squeezenet1_1", "timm:resnet10t"])
def test_networks_of_packages_have_one_logit_a_class(architecture):
    network = build_network(architecture, classes=7)
    assert network.training
    check_logits(network, (3, 64, 64), 7)
    assert network.training


def test_timm_takes_any_number_of_channels_and_torchvision_says_so():
    assert build_network("timm:resnet10t", classes=2, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 2)
    with pytest.raises(ScapError, match="takes images of 3 channels, not 1; timm's networks take any number"):
        build_network("torchvision:resnet18", in_channels=1)


def test_the_state_of_the_random_numbers_decides_the_initial_weights():
    first, again, other = (torch.manual_seed(seed) and build_network("torchvision:resnet18") for seed in (0, 0, 1))
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_a_backbone_is_not_fetched_unasked(hub):
    assert isinstance(build_network("torchvision:lraspp_mobilenet_v3_large", classes=3), nn.Module)


def test_weights_that_cannot_be_downloaded_are_one_line(hub):
    with pytest.raises(ScapError, match=r"torchvision:resnet18 cannot be downloaded \(.*no route to host.*give a file instead"):
        build_network("torchvision:resnet18", weights="DEFAULT")


def test_downloaded_weights_keep_a_fresh_head_for_other_classes(hub):
    hub["state"] = {
        name: torch.full_like(value, 2) for name, value in build_network("torchvision:resnet18").state_dict().items()
    }
    network = build_network("torchvision:resnet18", weights="IMAGENET1K_V1", classes=5)
    assert network.fc.out_features == 5
    for name, parameter in network.named_parameters():
        assert bool((parameter == 2).all()) == (not name.startswith("fc."))
    assert build_network("torchvision:resnet18", weights="DEFAULT", classes=1000).fc.weight.unique().tolist() == [2]


def test_timm_is_offline_in_one_line(monkeypatch):
    import_torchvision()
    from timm.models import _builder

    def offline(*arguments, **keywords):
        raise FileNotFoundError("cannot find the requested files\nin the cache")

    monkeypatch.setattr(_builder, "load_pretrained", offline)
    with pytest.raises(ScapError, match=r"timm:resnet10t cannot be downloaded .*cannot find the requested files in the cache"):
        build_network("timm:resnet10t", weights="DEFAULT")


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("torchvision:resnet19", {}, "there is no such network; did you mean resnet18"),
        ("timm:resnet19", {}, "there is no such network; did you mean resnet18"),
        ("timm:hf-hub:somebody/something", {}, "there is no such network"),
        ("torchvison:resnet18", {}, "'torchvison:resnet18' is unknown; did you mean 'torchvision'"),
        ("resnet18", {}, "is unknown; .* Other networks: torchvision:NAME"),
        ("torchvision:", {}, "'torchvision:' is unknown"),
        ("own.py", {}, "'own.py' is unknown; .* FILE.py:FUNCTION"),
        (3, {}, "3 is no name"),
        (["vgg16"], {}, "is no name"),
        ("torchvision:resnet18", {"widht": 2}, "unexpected keyword argument 'widht'"),
        ("timm:resnet10t", {"widht": 2}, "unexpected keyword argument 'widht'"),
        ("timm:resnet10t", {"checkpoint_path": "x"}, "'checkpoint_path' loads weights; leave it out"),
        ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}, "'weights_backbone' loads weights"),
        ("torchvision:resnet18", {"weights": "BEST"}, "offers no 'BEST'; choose one of IMAGENET1K_V1, DEFAULT"),
        ("timm:resnet10t", {"weights": "c3_in1k"}, "a tag is part of the name"),
        ("vgg16", {"weights": "DEFAULT"}, "for vgg16 give a checkpoint's file"),
        ("missing/own.py:network", {}, "there is no file missing/own.py; its path is relative to"),
    ],
)
def test_what_cannot_be_built_is_one_line(architecture, arguments, message):
    with pytest.raises(ScapError, match=message) as failure:
        build_network(architecture, **arguments)
    assert "\n" not in str(failure.value)


def test_a_package_that_is_missing_names_its_extra(monkeypatch):
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda package: None)
    for package, extra in names.EXTRAS.items():
        with pytest.raises(ScapError, match=rf"{package} is not installed; pip install '\.\[{extra}\]'"):
            build_network(f"{package}:resnet18")


def test_a_function_of_ones_own_gets_the_classes_and_what_it_takes(own):
    network = build_network(f"{own}:network", classes=7, in_channels=3, channels=4)
    check_logits(network, (3, 8, 8), 7)
    assert network[0].out_channels == 4
    assert build_network(f"{own}:any_arguments", classes=2, in_channels=5).in_features == 5


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("network", {}, "missing 1 required positional argument: 'classes'"),
        ("network", {"classes": 2, "width": 2}, "unexpected keyword argument 'width'"),
        ("network", {"classes": 2, "broken": True}, "RuntimeError: two lines"),
        ("no_network", {}, r"returns int; it must return a torch\.nn\.Module"),
        ("number", {}, "the file has no function 'number'"),
        ("nothing", {}, "the file has no function 'nothing'"),
        ("", {}, "'' cannot be a function's name"),
    ],
)
def test_a_function_that_gives_no_network_is_one_line(own, function, arguments, message):
    with pytest.raises(ScapError, match=message) as failure:
        build_network(f"{own}:{function}", **arguments)
    assert own in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_file_that_cannot_be_run_is_one_line(tmp_path):
    for code, message in (("def network(:", "SyntaxError"), ("import no_such_package", "ModuleNotFoundError")):
        (tmp_path / "own.py").write_text(code)
        with pytest.raises(ScapError, match=message):
            build_network(f"{tmp_path / 'own.py'}:network")
    assert str(tmp_path) not in sys.path


def test_a_file_of_ones_own_shadows_no_package(tmp_path):
    (tmp_path / "json.py").write_text(
        "from torch import nn\nimport json\ndumps = json.dumps\ndef network(): return nn.Identity()"
    )
    assert isinstance(build_network(f"{tmp_path / 'json.py'}:network"), nn.Identity)
    import json

    assert json.dumps([]) == "[]"


def test_a_pruned_network_of_ones_own_loads_where_its_code_may_run(own, tmp_path):
    about = {"architecture": f"{own}:network", "arguments": {"classes": 7}}
    network, images = build_network(f"{own}:network", classes=7).eval(), torch.randn(2, 3, 8, 8)
    assert prunable_layers(network, images) == ["0", "2"]
    plan = {"0": [0, 3]}
    pruned = cut_network(network, plan, images)
    save_network(tmp_path / "a.safetensors", pruned, plan=plan, example_shape=images.shape, **about)
    with pytest.raises(ScapError, match=r"made by .*own\.py:network, which is not run unasked; give run_code=True"):
        load_network(tmp_path / "a.safetensors")
    assert torch.equal(load_network(tmp_path / "a.safetensors", run_code=True)(images), pruned(images))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), r"gives \(1, 5\) for one image; the 7 classes .* need \(1, 7\)"),
        (nn.Conv2d(1, 7, 1), r"does not run on images of shape \(3, 4, 4\): .*channels"),
        (nn.LSTM(4, 7), "does not run on images|returns tuple"),
    ],
)
def test_what_is_no_classifier_of_the_data_is_said(network, message):
    with pytest.raises(ScapError, match=message):
        check_logits(network, (3, 4, 4), 7)


def test_names_are_checked_without_torch():
    code = (
        "import sys; from scap.models.names import check_architecture as f; f('torchvision:x'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr
    check_architecture("resnet56")
