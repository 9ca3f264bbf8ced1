"""RMS and novelty of channels: known answers and symmetries."""

import pytest
import torch

from scap.criterion.strengths import novelty, rms, second_moments

Y = torch.randn(5, 6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_second_moments_are_means_over_images_and_positions():
    flat = Y.transpose(0, 1).flatten(1)
    torch.testing.assert_close(second_moments(Y, batch_size=2), flat @ flat.T / (5 * 4 * 3))
    torch.testing.assert_close(rms(second_moments(Y)), Y.square().mean((0, 2, 3)).sqrt())


def test_half_precision_caches_do_not_overflow():
    loud = torch.full((2, 1, 64, 64), 300.0, dtype=torch.float16)
    assert rms(second_moments(loud)).item() == pytest.approx(300)


def test_novelty_is_the_residual_of_a_regression_on_the_channels_chosen_before():
    found, columns = novelty(second_moments(Y)), Y.transpose(0, 1).flatten(1)
    chosen = []
    for channel in found.argsort(descending=True).tolist():
        left = columns[channel]
        if chosen:
            basis = columns[chosen].T
            left = left - basis @ torch.linalg.lstsq(basis, left[:, None]).solution[:, 0]
        torch.testing.assert_close(found[channel], left.square().mean().sqrt())
        chosen.append(channel)


def test_the_product_of_squares_is_the_determinant():
    moments = second_moments(Y)
    torch.testing.assert_close(novelty(moments).square().prod(), torch.linalg.det(moments))


def test_channels_that_do_not_resemble_each_other_keep_their_rms():
    orthogonal = torch.eye(4).reshape(4, 4, 1, 1) * torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None, None]
    moments = second_moments(orthogonal)
    torch.testing.assert_close(novelty(moments), rms(moments))


def test_a_copy_a_mixture_and_a_dead_channel_add_nothing():
    mixed = torch.cat([Y[:, :3], 0.5 * Y[:, :1], Y[:, 1:2] - 0.1 * Y[:, 2:3], torch.zeros_like(Y[:, :1])], 1)
    found = novelty(second_moments(mixed))
    assert (found[[3, 5]] == 0).all()
    assert (found > 0).sum() == 3


def test_law_4_equivariant_under_permutation_and_scaling():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(novelty(second_moments(Y[:, order])), novelty(second_moments(Y))[order])
    torch.testing.assert_close(novelty(second_moments(7 * Y)), 7 * novelty(second_moments(Y)))
