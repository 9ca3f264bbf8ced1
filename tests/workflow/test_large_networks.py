"""Segmentation networks of torchvision that take more than the seconds of the inner loop."""

import pytest
from segmentation import check


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_segmentation_networks_of_torchvision(name, tmp_path):
    check(name, tmp_path)
