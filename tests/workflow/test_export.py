"""Pruned networks leave PyTorch: ONNX files are smaller and onnxruntime gives equal outputs; torch.export brings them back."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from torch import nn

import scap
from scap.errors import ScapError
from scap.pruning import export
from scap.pruning.export import open_onnx

EXAMPLE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
PLAN = {"0": list(range(0, 32, 3)), "3": list(range(5))}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )
    made(torch.randn(8, 3, 12, 12))  # statistics that are not the initial ones
    return made.eval()


@pytest.fixture(scope="module")
def pruned(network):
    return scap.prune_network(network, PLAN, EXAMPLE)


@pytest.fixture(scope="module")
def files(network, pruned, tmp_path_factory):
    """Of the whole network and of the pruned one, exported from one image."""
    folder = tmp_path_factory.mktemp("onnx")
    for name, each in {"whole": network, "pruned": pruned.train()}.items():
        scap.export_onnx(each, folder / f"new/{name}.onnx", EXAMPLE[:1])
    assert pruned.training
    pruned.eval()
    return {name: folder / f"new/{name}.onnx" for name in ("whole", "pruned")}


@pytest.mark.parametrize("images", [1, 2, 7])
def test_onnxruntime_gives_equal_outputs_for_any_number_of_images(pruned, files, images):
    given = torch.randn(images, 3, 12, 12)
    (found,) = open_onnx(files["pruned"])(given)
    with torch.no_grad():
        expected = pruned(given).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_file_shrinks_by_the_weights_that_went(network, pruned, files):
    sizes = {name: file.stat().st_size for name, file in files.items()}
    before, after = (scap.count_operations(each, EXAMPLE)["params"] for each in (network, pruned))
    assert sizes["whole"] - sizes["pruned"] == pytest.approx(4 * (before - after), rel=0.1)


class Several(nn.Module):
    """Two arguments, nested outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, left, right):
        found = self.conv(left - right)
        return {"out": found, "more": [found.mean((1, 2, 3)), found.argmax(1)]}


def test_networks_of_several_arguments_and_outputs(tmp_path):
    network = Several().eval()
    assert scap.export_onnx(network, tmp_path / "file", {"right": EXAMPLE, "left": 2 * EXAMPLE}) < 1e-5
    outputs = open_onnx(tmp_path / "file")(left=2 * EXAMPLE, right=EXAMPLE)
    assert [values.shape for values in outputs] == [(2, 4, 10, 10), (2,), (2, 10, 10)]
    np.testing.assert_allclose(outputs[0], network(2 * EXAMPLE, EXAMPLE)["out"].detach(), atol=1e-5)


class Fixed(nn.Module):
    def forward(self, images, more=None):
        images = images if more is None else images + more
        return images.reshape(2, 432).sin()


class Branches(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


class Draws(nn.Module):
    def forward(self, images):
        return images + torch.rand_like(images)


REFUSED = {
    "a fixed number of images": (Fixed(), r"the network does not run on an example of shape \(3, 3, 12, 12\)"),
    "a branch on values": (Branches(), r"export_onnx: the network cannot be exported: .*any_batch=False fixes"),
    "random numbers": (Draws(), r"export_onnx: onnxruntime's outputs differ by .* of the largest, more than 0\.0001; nothing"),
    "no network": (torch.jit.script(nn.Conv2d(3, 3, 1)), "network: it is compiled by TorchScript"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_exported_is_told_and_nothing_is_written(why, tmp_path):
    network, message = REFUSED[why]
    with pytest.raises(ScapError, match=message):
        scap.export_onnx(network, tmp_path / "file.onnx", EXAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_a_fixed_number_of_images(tmp_path):
    assert scap.export_onnx(Fixed(), tmp_path / "file.onnx", (EXAMPLE, EXAMPLE), any_batch=False) < 1e-6


def test_a_place_that_cannot_be_written_is_named(network, files, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_exported", lambda *_: files["whole"].read_bytes())
    (tmp_path / "file").write_text("")
    with pytest.raises(ScapError, match=r"file/network\.onnx: cannot be written"):
        scap.export_onnx(network, tmp_path / "file" / "network.onnx", EXAMPLE)


@pytest.mark.parametrize("path", [None, 3, "", "a\0b"])
def test_what_is_no_path_is_named_before_anything_is_exported(path, network, monkeypatch):
    monkeypatch.setattr(export, "_exported", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(ScapError, match=r"^path is "):
        scap.export_onnx(network, path, EXAMPLE)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra_that_has_it(network, tmp_path, monkeypatch, package):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest))
    with pytest.raises(ScapError, match=rf"^export_onnx: {package} not installed; run: pip install '\.\[onnx\]'$"):
        scap.export_onnx(network, tmp_path / "file.onnx", EXAMPLE)


@pytest.mark.parametrize("compensate", ["none", "full"])
def test_a_pruned_network_goes_through_torch_export_and_back(network, compensate):
    smaller = scap.prune_network(network, PLAN, EXAMPLE.repeat(8, 1, 1, 1), compensate=compensate).eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(smaller, (EXAMPLE,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    given = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(again(given), smaller(given))
    assert {name: value.shape for name, value in again.named_parameters()} == {
        name: value.shape for name, value in smaller.named_parameters()
    }
