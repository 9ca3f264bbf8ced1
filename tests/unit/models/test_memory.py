"""The order in memory: channels last wherever that cannot crash the process."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from scap.models.build import build_network
from scap.models.memory import memory_format

WIDTHS = [(4, 8), (5, 9), (3, 6), (16, 32)]
# In a process of its own, as the failure is a crash: a step of networks whose 1x1 convolution takes every second pixel.
STEPS = """
import torch
from torch import nn
from scap.models.memory import memory_format
torch.set_num_threads(1)
for widths in {widths}:
    network = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.Conv2d(*widths, 1, stride=2))
    order = memory_format(network, "cpu")
    network = network.to(memory_format=order)
    network(torch.randn(64, 3, 32, 32).contiguous(memory_format=order)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    print(widths, flush=True)
"""


def test_narrow_strided_convolutions_are_trained():
    """All in one process; no limit of time, as a busy machine takes minutes to import PyTorch."""
    done = subprocess.run([sys.executable, "-c", STEPS.format(widths=WIDTHS)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == list(map(str, WIDTHS)), done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "device", "expected"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), "cpu", torch.contiguous_format),
        (nn.Conv2d(4, 8, 1, stride=2), "cuda", torch.channels_last),
        (nn.Conv2d(4, 8, 1), "cpu", torch.channels_last),
        (nn.Conv2d(4, 8, 3, stride=2), "cpu", torch.channels_last),
        (nn.Conv2d(16, 32, 1, stride=2), "cpu", torch.channels_last),
        (nn.Linear(4, 8), "cpu", torch.channels_last),
    ],
)
def test_contiguous_only_where_a_narrow_strided_convolution_meets_a_cpu(module, device, expected):
    assert memory_format(nn.Sequential(nn.Conv2d(3, 4, 3), module), device) == expected


def test_the_networks_of_the_project_keep_the_fast_order():
    for architecture in ("vgg16", "resnet20"):
        assert memory_format(build_network(architecture), "cpu") == torch.channels_last
        assert memory_format(build_network(architecture, width=0.25), "cuda") == torch.channels_last


def test_a_narrow_strided_convolution_is_found_wherever_it_stands():
    network = build_network("resnet20", width=0.25)  # its shortcuts have no weights
    assert memory_format(network, "cpu") == torch.channels_last
    network.layer2[0].shortcut = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
    assert memory_format(network, "cpu") == torch.contiguous_format
