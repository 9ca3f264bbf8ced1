"""Examples are fitted to the layer that reads them, whatever precision other parameters have."""

import pytest
import torch
from clock import stop_the_clock
from torch import nn

import scap
from scap.models.inputs import device_and_precision

IMAGES = torch.rand(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return stop_the_clock(monkeypatch)


class Mixed(nn.Module):
    """Two half-precision convolutions with something in single precision before, between or after them."""

    def __init__(self, **parts):
        super().__init__()
        for name in ("scale", "positions"):
            if name in parts:
                setattr(self, name, parts[name])
        self.before, self.between = parts.get("before"), parts.get("between", nn.Identity())
        self.first, self.second = nn.Conv2d(3, 8, 1).half(), nn.Conv2d(8, 4, 1).half()

    def forward(self, images):
        own = self.first.weight.dtype
        images = images if self.before is None else self.before(images).to(own)
        maps = self.between(self.first(images).to(torch.promote_types(own, torch.float32))) + getattr(self, "positions", 0)
        return self.second(maps.relu().to(own)).float() * getattr(self, "scale", 1)


def scalar():
    return nn.Parameter(torch.tensor(2.6))


MIXED = {
    "a scale": lambda: Mixed(scale=scalar()),
    "a buffer": lambda: Mixed(scale=nn.Buffer(torch.tensor(2.6))),
    "positions": lambda: Mixed(positions=nn.Parameter(torch.rand(1, 1, 8, 8))),
    "both": lambda: Mixed(scale=scalar(), positions=nn.Parameter(torch.rand(1, 1, 8, 8))),
    "a norm": lambda: Mixed(between=nn.BatchNorm2d(8)),
    "a norm before": lambda: Mixed(before=nn.BatchNorm2d(3)),
    "a first linear layer": lambda: Mixed(before=nn.Linear(8, 8)),
    "a first convolution": lambda: Mixed(before=nn.Conv2d(3, 3, 1)),
    "a first convolution and a scale": lambda: Mixed(before=nn.Conv2d(3, 3, 1), scale=scalar()),
}
USES = {
    "explain": lambda n, x: scap.explain(n, x).set_index("layer").prunable["first"],
    "count_operations": lambda n, x: scap.count_operations(n, x)["macs"] >= 1536 + 2048,
    "layer_macs": lambda n, x: scap.layer_macs(n, x)["first"] == 1536,
    "measure_latency": lambda n, x: scap.measure_latency(n, x, repeats=1, warmup=0).images == 2,
    "prune_network": lambda n, x: scap.prune_network(n, {"first": [0, 1]}, x).second.in_channels == 2,
    "score_network": lambda n, x: "first" in set(scap.score_network(n, x, layers=["first"], criterion="l1").layer),
    "score_network by activations": lambda n, x: len(scap.score_network(n, x.float(), layers=["first"], criterion="rms")) == 8,
    "prune_network compensated": lambda n, x: scap.prune_network(n, {"first": [0, 1]}, x.float(), compensate="batch-norm"),
}


@pytest.mark.parametrize("given", [torch.float16, torch.float32])
@pytest.mark.parametrize("made", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_half_precision_layers_run_beside_single_precision_parameters(use, made, given):
    assert use(made().eval(), IMAGES.to(given))


@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("use", ["explain", "count_operations", "layer_macs", "measure_latency", "prune_network"])
def test_a_network_of_one_precision_reads_examples_of_any(use, own, given):
    network = Mixed(scale=scalar()).to(own).eval()
    assert device_and_precision(network) == (torch.device("cpu"), own)
    assert USES[use](network, IMAGES.to(given))


@pytest.mark.parametrize(
    ("network", "dtype"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 4, 1).half()), torch.float32),
        (nn.Sequential(nn.PReLU(), nn.Embedding(3, 4), nn.Conv1d(3, 4, 1).bfloat16()), torch.bfloat16),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Linear(4, 4).half()), torch.float16),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)).half(), nn.Linear(4, 4)), torch.float16),
        (nn.BatchNorm2d(3).half(), torch.float16),
        (nn.BatchNorm2d(3, affine=False).double(), torch.float64),
        (nn.ReLU(), torch.float32),
    ],
)
def test_the_first_layer_tells_the_precision(network, dtype):
    assert device_and_precision(network)[1] == dtype
