"""The public interface: a network of the user's own, scored, pruned, saved and loaded in a few lines."""

import pytest
import torch

import scap
from scap.criterion.activations import record_activations
from scap.criterion.autoencoder import AutoencoderSettings, fidelities
from scap.criterion.fitting import _step, fit_autoencoder, random_autoencoder
from scap.criterion.spectra import open_activations, spectra_of
from scap.criterion.strengths import novelty, rms, second_moments
from scap.models.build import build_network


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("resnet20", width=0.25).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


SETTINGS = scap.AutoencoderSettings(bottleneck=2, epochs=2)


def test_from_network_to_smaller_network(network, images, tmp_path):
    table = scap.score_network(network, images, autoencoder=SETTINGS)
    assert table["layer"].unique().tolist() == scap.prunable_layers(network, images[:1])
    plan = scap.plan_at(table, 0.5)
    smaller = scap.prune_network(network, plan, images[:1])
    assert scap.count_operations(smaller, images[:1])["macs"] < scap.count_operations(network, images[:1])["macs"]
    path = tmp_path / "smaller.safetensors"
    scap.save_network(path, smaller, plan=plan, example_shape=images[:1].shape)
    loaded = scap.load_network(path, build=lambda: build_network("resnet20", width=0.25))
    with torch.no_grad():
        assert torch.equal(loaded(images), smaller.eval()(images))


def test_scores_are_those_of_the_steps_one_by_one(network, images, tmp_path):
    layer = "layer2.0.conv1"  # stride 2: the output is resized
    table = scap.score_network(network, images, layers=[layer], autoencoder=SETTINGS, dtype=torch.float32)
    record_activations(network, images, [layer], tmp_path / "a", dtype=torch.float32)
    spectra = spectra_of(*open_activations(tmp_path / "a", layer))
    expected = fidelities(fit_autoencoder(spectra, SETTINGS, layer=layer), spectra, SETTINGS)
    torch.testing.assert_close(torch.tensor(table["fidelity"]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("magnitude_of", "measure"), [("rms", rms), ("novelty", novelty)])
def test_the_magnitude_may_be_that_of_the_activation(network, images, tmp_path, magnitude_of, measure):
    layers = ["layer1.0.conv1", "layer2.0.conv1"]
    criterion = scap.CriterionSettings(magnitude_of=magnitude_of, magnitude_normalisation="raw", fusion="magnitude")
    table = scap.score_network(network, images, layers=layers, autoencoder=SETTINGS, criterion=criterion)
    record_activations(network, images, layers, tmp_path / "a", dtype=torch.float32)
    for layer, rows in table.groupby("layer"):
        expected = measure(second_moments(open_activations(tmp_path / "a", layer)[1]))
        torch.testing.assert_close(torch.tensor(rows["score"].to_numpy()), expected, rtol=1e-3, atol=1e-5)  # float16 caches


def test_controls_need_no_images(network):
    for method in ("l1", "random"):
        criterion = scap.CriterionSettings(method=method)
        table = scap.score_network(network, None, layers=["layer1.0.conv1"], criterion=criterion)
        assert table["fidelity"].isna().all()
        assert table["score"].between(0, 1).all()


def test_law_6_same_table_bit_for_bit(network, images):
    tables = [scap.score_network(network, images, autoencoder=SETTINGS) for _ in range(2)]
    assert tables[0].equals(tables[1])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = scap.prune
    assert set(scap.__all__) == {name for name in scap.__all__ if getattr(scap, name)}


@pytest.mark.parametrize("representation", ["complex", "power"])
@pytest.mark.parametrize("balance", ["none", "unit-rms"])
def test_a_training_step_reads_no_value_back(representation, balance):
    """On the device "meta" tensors have no values: what would wait for a graphics processor raises an error there."""
    settings = AutoencoderSettings(representation=representation, balance=balance)
    spectra = spectra_of(torch.rand(4, 3, 6, 6), torch.rand(4, 5, 6, 6))
    network = random_autoencoder(spectra, settings, 2, "").to("meta")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    batch = spectra.to("meta").batch(torch.arange(2, device="meta"))
    assert _step(network, optimiser, batch, settings).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        network.rows.sum().item()


@pytest.mark.parametrize("method", ["scap", "l1", "random"])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["block9.conv"], "layer 'block9.conv' is no ungrouped convolution"),
        (["bn1"], "layer 'bn1' is no ungrouped convolution"),
        ([], "layers: none is given"),
    ],
)
def test_a_layer_that_cannot_be_scored_is_named(network, images, method, layers, message):
    with pytest.raises(scap.ScapError, match=message):
        scap.score_network(network, images, layers=layers, criterion=scap.CriterionSettings(method=method))
