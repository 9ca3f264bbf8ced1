"""Working in the span of the inputs changes nothing but the cost (docs/method.md, section 4.4)."""

from dataclasses import replace

import pytest
import torch

from scap.criterion import fitting
from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings, blocks, fidelities
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.span import span_of, worthwhile
from scap.criterion.spectra import Spectra, spectra_of


def layer(images: int = 6, domain: str = "frequency") -> Spectra:
    """Spectra after ReLU, with a silent image, one that stands twice and a quiet one: the Gram matrix has no full rank."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(images, 5, 6, 4, generator=generator, dtype=torch.float64).relu()
    inputs[1] = 0
    inputs[2] = inputs[0]
    inputs[3] *= 1e-5
    outputs = torch.randn(images, 7, 6, 4, generator=generator, dtype=torch.float64).relu() * torch.rand(7, 1, 1)
    return spectra_of(inputs, outputs, domain)


@pytest.mark.parametrize("domain", ["frequency", "space"])
@pytest.mark.parametrize("balance", ["none", "unit-rms"])
def test_rows_in_the_span_are_the_same_rows(balance, domain):
    spectra, settings = layer(domain=domain), AutoencoderSettings(balance=balance)
    span = span_of(spectra)
    assert span.combination.shape[1] == 4  # of six images one is silent and one a copy
    rows = torch.randn(3, *(span.spectra.inputs.shape[1] + 1, spectra.layout.size), dtype=torch.float64)
    expanded = span.expand(rows)
    assert expanded.shape == (3, 6, 24)
    (compact,), (whole,) = blocks(span.spectra, settings), blocks(spectra, settings)
    torch.testing.assert_close(compact.norm, whole.norm, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(compact.project(rows), whole.project(expanded), rtol=1e-10, atol=1e-10)
    rows[:, :-1].flatten(1)[:, 4:] = 0  # the padding
    torch.testing.assert_close(rows.flatten(1) @ rows.flatten(1).T, expanded.flatten(1) @ expanded.flatten(1).T)


def test_float16_spectra_lose_nothing_in_the_span():
    spectra = layer()
    spectra = Spectra(spectra.inputs.half(), spectra.outputs.half(), spectra.layout)
    gram = span_of(spectra).spectra.inputs.flatten(1).double()
    exact = spectra.inputs.flatten(1).double()
    torch.testing.assert_close(gram @ gram.T, exact @ exact.T, rtol=1e-6, atol=1e-6)


def test_it_pays_only_where_there_are_fewer_images_than_coordinates():
    assert worthwhile(layer(images=60))
    assert not worthwhile(layer(images=61))


def test_many_images_are_fitted_where_they_are(monkeypatch):
    """The eigenvectors of N images cost N³."""
    monkeypatch.setattr("scap.criterion.span.MOST", 40)
    assert worthwhile(layer(images=40))
    assert not worthwhile(layer(images=41))


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
@pytest.mark.parametrize("changes", [{}, {"balance": "unit-rms"}, {"explained": 0.6}, {"activation": "relu"}])
def test_the_fit_is_as_good_as_without(monkeypatch, kind, changes):
    spectra = layer(images=12)
    settings = AutoencoderSettings(kind=kind, bottleneck=3, epochs=100, **changes)
    fitted = fit_autoencoder(spectra, settings)
    monkeypatch.setattr(fitting, "worthwhile", lambda spectra: False)
    expected = fit_autoencoder(spectra, settings)
    assert fitted.rows.shape == expected.rows.shape
    found, wanted = (_loss(network, spectra, settings) for network in (fitted, expected))
    assert found < wanted * (1.00001 if kind == "linear" else 1.02)
    if kind == "linear" or settings.activation == "tanh":  # with ReLU, two good minima may be far apart
        found, wanted = (fidelities(network, spectra, settings) for network in (fitted, expected))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 if kind == "linear" else 0.02)


def _loss(network: Autoencoder, spectra: Spectra, settings: AutoencoderSettings) -> float:
    (block,) = blocks(spectra, settings)
    inner, square = network.similarity(block)
    return (1 - 2 * inner + square).mean().item()


def test_a_random_start_stays_in_the_coordinates_of_the_spectra(monkeypatch):
    def refuse(spectra: Spectra) -> None:
        raise AssertionError("a random start has parts outside of the span")

    monkeypatch.setattr(fitting, "span_of", refuse)
    settings = AutoencoderSettings(start="random", epochs=1)
    fit_autoencoder(layer(), settings)
    fit_autoencoder(layer(), replace(settings, representation="power", start="principal"))
    with pytest.raises(AssertionError, match="outside of the span"):
        fit_autoencoder(layer(), replace(settings, start="principal"))


def test_a_fit_ends_where_nothing_moves_any_more():
    """At a tolerance of 0 and however many passes are allowed: spectra of silence have no gradient."""
    silent = spectra_of(torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4))
    losses: list[float] = []
    settings = AutoencoderSettings(bottleneck=2, tolerance=0.0, epochs=100, start="random")
    fit_autoencoder(silent, settings, report=lambda state: losses.append(state["loss"]))
    assert losses[-1] <= losses[0]
    assert len(losses) < 100
