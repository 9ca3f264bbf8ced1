"""Fidelities do not depend on how large a layer's numbers are, and half precision refuses what it would lose."""

import pytest
import torch
from torch import nn

import scap
from scap.criterion.autoencoder import AutoencoderSettings, fidelities
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.spectra import Layout, Spectra
from scap.errors import ScapError
from scap.tensors import TensorFile

LAYOUT = Layout(4, 4)


def parts():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 16, generator=generator), torch.randn(6, 5, 16, generator=generator)


def found(factor, **settings):
    inputs, outputs = parts()
    chosen = AutoencoderSettings(bottleneck=2, epochs=6, batch_size=4, **settings)
    spectra = Spectra(inputs * factor, outputs * factor, LAYOUT)
    return fidelities(fit_autoencoder(spectra, chosen), spectra, chosen)


@pytest.mark.parametrize("power", [-100, -50, -25, 25, 50, 100])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("balance", ["none", "unit-rms"])
@pytest.mark.parametrize("representation", ["complex", "power", "magnitude", "log-magnitude"])
def test_a_power_of_two_alters_no_bit(representation, balance, kind, power):
    settings = {"representation": representation, "balance": balance, "kind": kind}
    assert torch.equal(found(2.0**power, **settings), found(1.0, **settings))


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("representation", ["complex", "power", "magnitude", "log-magnitude"])
def test_each_image_may_be_of_another_size(representation, kind):
    settings = {"representation": representation, "kind": kind}
    factors = torch.tensor([1.0, 2.0**-60, 2.0**60, 2.0**-90, 2.0**90, 2.0])[:, None, None]
    assert torch.equal(found(factors, **settings), found(1.0, **settings))


@pytest.mark.parametrize("representation", ["complex", "power", "magnitude"])
def test_a_channel_beside_which_an_image_is_quiet_counts(representation):
    """|S|² of a quiet image and a quiet channel was once taken for zero, by a bound that did not know how large others are."""
    inputs, outputs = parts()
    inputs, outputs = inputs * 2.0**-20, outputs * 2.0**-20
    outputs[:, 0] *= 2.0**21
    chosen = AutoencoderSettings(bottleneck=2, epochs=6, representation=representation)
    spectra, exact = Spectra(inputs, outputs, LAYOUT), Spectra(inputs.double(), outputs.double(), LAYOUT)
    network = fit_autoencoder(exact, chosen)
    expected = fidelities(network, exact, chosen)
    torch.testing.assert_close(fidelities(network.float(), spectra, chosen), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("representation", ["complex", "power", "magnitude", "log-magnitude"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_black_images_and_silent_channels_stay_so(representation, kind):
    inputs, outputs = parts()
    inputs, outputs = inputs * 1e-20, outputs * 1e-20
    inputs[1], outputs[1], outputs[:, 2] = 0, 0, 0
    chosen = AutoencoderSettings(bottleneck=2, epochs=6, representation=representation, kind=kind)
    spectra = Spectra(inputs, outputs, LAYOUT)
    assert fidelities(fit_autoencoder(spectra, chosen), spectra, chosen).isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "batches", "problem"),
    [
        (torch.float16, [1e-6, 1e-6], "reach only 1e-06, less than float16 holds; use `dtype: float32`"),
        (torch.float16, [1e-12, 0.0], "reach only 1e-12, less than float16 holds; use `dtype: float32`"),
        (torch.float16, [1e-6, 1.0], None),
        (torch.float16, [1e-5, 1e-5], None),
        (torch.float16, [0.0, 0.0], None),
        (torch.float16, [1.0, -1e5], r"reach 1e\+05, more than float16 holds; use `dtype: float32`"),
        (torch.float16, [1.0, -65504.0], None),
        (torch.float32, [1e-12, 1e5], None),
        (torch.float32, [1e-42, 1e-42], "reach only 1e-42, less than float32 holds; scale the images"),
        (torch.float16, [1.0, torch.nan], "hold NaN or infinity; the network has diverged, train it again"),
        (torch.float32, [1.0, -torch.inf], "hold NaN or infinity; the network has diverged, train it again"),
    ],
)
def test_a_file_of_numbers_that_its_precision_loses_is_refused(tmp_path, dtype, batches, problem):
    def write():
        with TensorFile(tmp_path / "file", {"a.outputs": (2, 3)}, dtype) as file:
            for value in batches:
                file.append("a.outputs", torch.tensor([[0.0, value, value / 2]]))

    if problem is None:
        write()
        assert (tmp_path / "file").is_file()
    else:
        with pytest.raises(ScapError, match=f"file: the a.outputs {problem}$"):
            write()
        assert not list(tmp_path.iterdir())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False)
    )


@pytest.mark.parametrize("term", ["fidelity", "rms", "novelty"])
def test_activations_that_float16_loses_are_refused_and_float32_scores_them(term):
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    chosen = AutoencoderSettings(bottleneck=2, epochs=6)
    with pytest.raises(ScapError, match=r"^activations: the 0\.inputs reach only \S+, less than float16 holds; use `dtype: fl"):
        scap.score_network(network(), images * 1e-9, criterion=term, autoencoder=chosen)
    tables = [
        scap.score_network(network(), images * scale, criterion=term, autoencoder=chosen, dtype=torch.float32)
        for scale in (1, 2.0**-30, 2.0**30)
    ]
    for table in tables[1:]:
        assert table["score"].tolist() == pytest.approx(tables[0]["score"].tolist(), abs=1e-5)
