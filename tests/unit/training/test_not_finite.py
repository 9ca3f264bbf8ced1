"""A network whose outputs are not finite has no accuracy."""

import pytest
import torch
from torch import nn

from scap.data.datasets import Images
from scap.errors import ScapError
from scap.training.loop import evaluate

IMAGES = Images(torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8), torch.arange(20) % 3)
MEAN, STD = torch.tensor([0.5]), torch.tensor([0.25])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [slice(None), 0])
def test_a_network_that_gives_nan_or_infinity_is_not_measured(value, place):
    """Of all equal outputs, or of NaN, argmax takes the first: "10.0 %" of ten classes."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    network[1].bias.data[place] = value
    with pytest.raises(ScapError, match="outputs for 20 of 20 images are NaN or infinite"):
        evaluate(network, IMAGES, MEAN, STD, batch_size=8)


def test_one_image_is_enough():
    class Odd(nn.Module):
        def forward(self, images):
            logits = images.flatten(1)[:, :3].clone()
            logits[0, 1] = torch.nan
            return logits

    with pytest.raises(ScapError, match="outputs for 3 of 20 images"):
        evaluate(Odd(), IMAGES, MEAN, STD, batch_size=8)
