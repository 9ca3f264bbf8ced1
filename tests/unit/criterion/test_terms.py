"""The terms of the score: known answers, symmetries, and what each says it needs."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from scap.criterion import terms
from scap.criterion.terms import RAW, REDUNDANCY, TERMS, fidelity, l1, needs, novelty, random, rms, second_moments

Y = torch.randn(5, 6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHT = np.array([[[[1.0, -2.0]], [[0.5, 0.0]]], [[[0.0, 0.0]], [[0.0, -3.0]]]])


def test_the_fidelity_is_that_of_the_autoencoder():
    values = np.array([0.5, 0.9])
    assert fidelity(values) is values


def test_l1_is_the_norm_of_each_filter():
    np.testing.assert_allclose(l1(WEIGHT), [3.5, 3.0])


def test_random_is_uniform_by_seed_and_layer():
    many = random(np.zeros((10_000, 1, 1, 1)), "conv1", 0)
    assert (many >= 0).all()
    assert (many < 1).all()
    assert many.mean() == pytest.approx(0.5, abs=0.02)
    assert many.var() == pytest.approx(1 / 12, abs=0.01)
    assert (many == random(np.zeros((10_000, 2, 3, 3)), "conv1", 0)).all()
    for layer, seed in [("conv2", 0), ("conv1", 1)]:
        assert not (many == random(np.zeros((10_000, 1, 1, 1)), layer, seed)).any()


def test_second_moments_are_means_over_images_and_positions():
    flat = Y.transpose(0, 1).flatten(1)
    np.testing.assert_allclose(second_moments(Y, batch_size=2), flat @ flat.T / (5 * 4 * 3))
    np.testing.assert_allclose(rms(Y), Y.square().mean((0, 2, 3)).sqrt())


def test_half_precision_caches_do_not_overflow():
    loud = torch.full((2, 1, 64, 64), 300.0, dtype=torch.float16)
    assert rms(loud).item() == pytest.approx(300)


def test_novelty_is_the_residual_of_a_regression_on_the_channels_chosen_before():
    found, columns = novelty(Y), Y.transpose(0, 1).flatten(1)
    chosen = []
    for channel in (-found).argsort().tolist():
        left = columns[channel]
        if chosen:
            basis = columns[chosen].T
            left = left - basis @ torch.linalg.lstsq(basis, left[:, None]).solution[:, 0]
        assert found[channel] == pytest.approx(left.square().mean().sqrt().item())
        chosen.append(channel)


def test_the_product_of_squares_is_the_determinant():
    assert np.square(novelty(Y)).prod() == pytest.approx(np.linalg.det(second_moments(Y)))


def test_channels_that_do_not_resemble_each_other_keep_their_rms():
    orthogonal = torch.eye(4).reshape(4, 4, 1, 1) * torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None, None]
    np.testing.assert_allclose(novelty(orthogonal), rms(orthogonal))


def test_a_copy_a_mixture_and_a_dead_channel_add_nothing():
    mixed = torch.cat([Y[:, :3], 0.5 * Y[:, :1], Y[:, 1:2] - 0.1 * Y[:, 2:3], torch.zeros_like(Y[:, :1])], 1)
    found = novelty(mixed)
    assert (found[[3, 5]] == 0).all()
    assert (found > 0).sum() == 3


@pytest.mark.parametrize("term", [rms, novelty])
def test_law_4_equivariant_under_permutation_and_scaling(term):
    order = [3, 0, 5, 1, 4, 2]
    np.testing.assert_allclose(term(Y[:, order]), term(Y)[order])
    np.testing.assert_allclose(term(7 * Y), 7 * term(Y))


@pytest.mark.parametrize(
    ("term", "needed"),
    [
        ("fidelity", {"autoencoder"}),
        ("l1", {"weight"}),
        ("rms", {"outputs"}),
        ("novelty", {"outputs"}),
        ("random", {"weight", "layer", "seed"}),
    ],
)
def test_a_term_needs_its_parameters(term, needed):
    assert needs(term) == needed


def test_every_term_is_listed_needs_what_is_given_and_is_described():
    given = {"weight", "outputs", "autoencoder", "layer", "seed", "network", "images", "layers"}
    assert set(TERMS) >= REDUNDANCY | RAW
    for term, function in TERMS.items():
        assert getattr(terms, term.replace("-", "_")) is function
        assert needs(term) <= given
        assert inspect.getdoc(function)
        # One layer at a time, or the whole network at once: evaluate_term tells them apart by it.
        assert ("network" in needs(term)) == ("layers" in needs(term))


def test_asking_what_a_term_needs_imports_no_torch():
    code = "import sys; from scap.criterion.terms import needs; needs('conditional'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
