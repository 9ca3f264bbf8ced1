"""What the criterion reads is of the layer that it is taken for, of the right shapes and finite; what it computes is too."""

import math

import numpy as np
import pytest
import torch

import scap
from scap.criterion.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from scap.criterion.fusion import channel_scores, importance, normalise_term
from scap.criterion.settings import CriterionSettings
from scap.criterion.spectra import open_activations, open_spectra, write_spectra
from scap.errors import DamagedFile, ScapError
from scap.models.vgg import vgg16
from scap.tensors import save_tensors


def activations(**changed):
    made = {"a.inputs": torch.rand(2, 3, 4, 4), "a.outputs": torch.rand(2, 5, 4, 4)} | changed
    return {name: tensor for name, tensor in made.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a.outputs": None}, "holds no 'a.outputs'"),
        ({"a.outputs": torch.rand(3, 5, 4, 4)}, r"'a.outputs' has shape \(3, 5, 4, 4\), not \(2, K"),
        ({"a.inputs": torch.rand(2, 3, 4)}, "'a.inputs' has shape"),
        ({"a.inputs": torch.rand(0, 3, 4, 4)}, "'a.inputs' has shape"),
        ({"a.inputs": torch.ones(2, 3, 4, 4, dtype=torch.int64)}, "'a.inputs' is of type I64"),
        ({"a.inputs": torch.full((2, 3, 4, 4), math.inf)}, "'a.inputs' holds NaN or infinity"),
    ],
)
def test_activations_are_checked(tmp_path, changed, message):
    save_tensors(tmp_path / "x", activations(**changed))
    with pytest.raises(DamagedFile, match=rf"x: {message}.*; make it again"):
        open_activations(tmp_path / "x", "a")


def test_spectra_of_another_layer_are_refused(tmp_path):
    save_tensors(tmp_path / "activations", activations())
    write_spectra(tmp_path / "activations", "a", tmp_path / "x")
    assert open_spectra(tmp_path / "x", "a").channels == 5
    with pytest.raises(DamagedFile, match="x: is of layer 'a', not of 'b'"):
        open_spectra(tmp_path / "x", "b")


@pytest.mark.parametrize("size", ["5", "", "-4", "four", "²"])
def test_spectra_need_a_height_and_width_that_fit(tmp_path, size):
    tensors = {"inputs": torch.rand(2, 3, 16), "outputs": torch.rand(2, 5, 16)}
    save_tensors(tmp_path / "x", tensors, {"layer": "a", "height": size, "width": "4"})
    with pytest.raises(DamagedFile, match="x: has 16 coordinates, but height and width"):
        open_spectra(tmp_path / "x", "a")


def test_an_autoencoder_knows_its_layer_and_representation(tmp_path):
    save_autoencoder(tmp_path / "x", Autoencoder(torch.ones(3, 2, 4), torch.ones(1), "tanh"), "a", "power")
    assert load_autoencoder(tmp_path / "x", "a", "power").bottleneck == 1
    with pytest.raises(DamagedFile, match="x: is of layer 'a', not of 'b'"):
        load_autoencoder(tmp_path / "x", "b")
    with pytest.raises(DamagedFile, match="x: is of representation 'power', not of 'complex'"):
        load_autoencoder(tmp_path / "x", "a", "complex")


@pytest.mark.parametrize(
    ("rows", "bias", "activation", "message"),
    [
        (torch.ones(4, 2, 4), torch.ones(1), "tanh", r"'rows' has shape \(4, 2, 4\), not \(3, "),
        (torch.ones(3, 2, 4).half(), torch.ones(1).half(), "tanh", "'bias' is of type F16, not F32 or F64"),
        (torch.ones(3, 2, 4).double(), torch.ones(1), "tanh", "torch.float64 and torch.float32"),
        (torch.full((3, 2, 4), math.nan), torch.ones(1), "tanh", "'rows' holds NaN"),
        (torch.ones(3, 2, 4), torch.ones(1), "sine", "activation 'sine'"),
    ],
)
def test_what_is_no_autoencoder_is_refused(tmp_path, rows, bias, activation, message):
    save_tensors(tmp_path / "x", {"rows": rows, "bias": bias}, {"activation": activation, "layer": "a"})
    with pytest.raises(DamagedFile, match=message):
        load_autoencoder(tmp_path / "x")


@pytest.mark.parametrize("how", ["raw", "min-max", "max", "mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_levels_no_layer(how, value):
    values = np.array([1, 2, value, 4])
    with pytest.raises(ScapError, match=r"channel 2 is (nan|-?inf) \(1 of 4 are not finite\)"):
        normalise_term(values, how)
    settings = CriterionSettings(terms={"l1": 1}, normalise={"l1": how})
    with pytest.raises(ScapError, match="channel 2"):
        importance({"l1": values}, settings)
    with pytest.raises(ScapError, match="layer a: term 'l1': channel 2"):
        channel_scores("a", {"l1": values}, settings)


@pytest.mark.parametrize("terms", [{"l1": 1}, {"fidelity": 1}, {"rms": 1, "l1": 1}])
def test_a_weight_that_is_nan_is_named_with_its_layer(terms):
    network = vgg16(in_channels=1, width=0.0625).eval()
    network.conv1_2.weight.data[3] = math.nan
    settings = CriterionSettings(terms=terms)
    autoencoder = scap.AutoencoderSettings(bottleneck=2, epochs=1)
    with pytest.raises(ScapError, match=r"conv1_2"):
        scap.score_network(network, torch.rand(4, 1, 32, 32), layers=["conv1_2"], criterion=settings, autoencoder=autoencoder)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 1, 32, 32), np.float32), "images is a ndarray; give a tensor"),
        ([[0.0]], "images is a list; give a tensor"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "of torch.uint8; give normalised floats"),
        (torch.zeros(1, 32, 32), "give normalised floats"),
        (torch.zeros(0, 1, 32, 32), "give normalised floats"),
        (torch.full((2, 1, 32, 32), math.nan), "they hold NaN or infinity"),
    ],
)
def test_images_that_are_none_are_refused(images, message):
    with pytest.raises(ScapError, match=message):
        scap.score_network(vgg16(in_channels=1, width=0.0625), images, layers=["conv1_1"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_precisions_are_scored(dtype):
    network = vgg16(in_channels=1, width=0.0625).eval().to(dtype)
    autoencoder = scap.AutoencoderSettings(bottleneck=2, epochs=1)
    table = scap.score_network(network, torch.rand(4, 1, 32, 32), layers=["conv1_1"], autoencoder=autoencoder)
    assert np.isfinite(table["score"]).all()
