"""Segmentation through the same calls: score, prune, compensate, fine-tune, save, load."""

from segmentation import check


def test_a_segmentation_network_of_torchvision(tmp_path):
    """Larger ones are in tests/workflow/test_large_networks.py; one that learns is in test_examples.py."""
    check("lraspp_mobilenet_v3_large", tmp_path)
