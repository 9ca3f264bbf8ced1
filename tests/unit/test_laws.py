"""The laws of the method (docs/method.md, section 5) that concern the evaluation; each can fail."""

import pytest
import torch
from conftest import choices
from torch import Tensor

from scap.criterion import autoencoder as ae
from scap.criterion import reference as direct
from scap.criterion.autoencoder import Autoencoder, AutoencoderSettings
from scap.criterion.fitting import fit_autoencoder, principal_autoencoder, principal_subspace
from scap.criterion.spectra import Spectra, spectra_of

# images, input channels, output channels, input size, output size
SHAPES = {
    "even": (3, 4, 5, (6, 8), (6, 8)),
    "odd": (2, 3, 4, (5, 7), (5, 7)),
    "mixed": (2, 3, 4, (4, 5), (4, 5)),
    "one-input": (3, 1, 4, (4, 4), (4, 4)),
    "one-output": (3, 4, 1, (4, 4), (4, 4)),
    "one-pixel": (3, 4, 5, (1, 1), (1, 1)),
    "two-pixels": (3, 4, 5, (2, 2), (2, 2)),
    "row": (3, 2, 3, (1, 6), (1, 6)),
    "strided": (2, 3, 4, (8, 6), (4, 3)),
}
REPRESENTATIONS, LOSSES = (choices(AutoencoderSettings, name) for name in ("representation", "loss"))


def activations(shape: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    n, c, k, size, out = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, c, *size, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(n, k, *out, generator=generator, dtype=torch.float64).relu() * 2


def random_autoencoder(spectra: Spectra, representation: str, bottleneck: int = 3, activation: str = "tanh") -> Autoencoder:
    generator = torch.Generator().manual_seed(1)
    shape = ae.row_shape(spectra.inputs.shape[1], spectra.layout, representation)
    rows = torch.randn(2 * bottleneck + 1, *shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(bottleneck, generator=generator, dtype=torch.float64)
    return Autoencoder(rows, bias, activation)


@pytest.mark.parametrize("domain", ["frequency", "space"])
@pytest.mark.parametrize("balance", ["none", "unit-rms"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_law_1_direct_and_factorised_evaluation_agree(shape, representation, balance, domain):
    inputs, outputs = activations(shape)
    settings = AutoencoderSettings(representation=representation, balance=balance, domain=domain, workspace_mb=1)
    spectra = spectra_of(inputs, outputs, domain)
    network = random_autoencoder(spectra, representation)
    s, reconstructed = (part.flatten(2) for part in direct.reconstruct(network, inputs, outputs, settings))
    parts = [network.similarity(block) for block in ae.blocks(spectra, settings)]
    inner, square = (torch.cat([part[i].reshape(-1) for part in parts]).view(s.shape[:2]) for i in (0, 1))

    torch.testing.assert_close(inner, (s * reconstructed).sum(-1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(square, reconstructed.square().sum(-1), rtol=1e-9, atol=1e-9)
    cosines = torch.nn.functional.cosine_similarity(s, reconstructed, dim=-1)
    torch.testing.assert_close(ae.cosine(inner, square), cosines, rtol=1e-9, atol=1e-9)
    for loss in LOSSES:
        reference = (s - reconstructed).square().sum(-1) if loss == "squared" else 1 - cosines
        torch.testing.assert_close(ae.losses(inner, square, loss), reference, rtol=1e-9, atol=1e-9)
        gradients = torch.autograd.grad(ae.losses(inner, square, loss).sum(), network.rows, retain_graph=True)
        expected = torch.autograd.grad(reference.sum(), network.rows, retain_graph=True)
        torch.testing.assert_close(gradients, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("representation", ["complex", "power"])
@pytest.mark.parametrize("side", [6, 7])
def test_law_1_holds_in_float32_for_wide_layers(representation, side):
    """Sums over 40,000 to 100,000 numbers, whose small differences the loss and its gradient are."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(2, channels, side, side, generator=generator).relu() for channels in (2048, 8))
    settings = AutoencoderSettings(representation=representation, bottleneck=4)
    spectra = spectra_of(inputs, outputs)
    network = principal_autoencoder(principal_subspace(ae.KeptBlocks(spectra, settings), iterations=5)[0], settings)
    exact = Autoencoder(network.rows.detach().double(), network.bias.detach().double(), network.activation)
    s, reconstructed = direct.reconstruct(exact, inputs.double(), outputs.double(), settings)
    expected = (s - reconstructed).square().sum((2, 3, 4)).mean()
    (block,) = ae.blocks(spectra, settings)
    inner, square = network.similarity(block)
    loss = ae.losses(inner, square, "squared").mean(dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    cosines = torch.nn.functional.cosine_similarity(s.flatten(2), reconstructed.flatten(2), dim=-1)
    torch.testing.assert_close(ae.cosine(inner, square).double(), cosines, rtol=1e-6, atol=0)
    (gradient,), (exactly,) = torch.autograd.grad(loss, network.rows), torch.autograd.grad(expected, exact.rows)
    assert (gradient - exactly).abs().max() < 1e-5 * exactly.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dense_autoencoder_never_leaves_the_compact_coordinates(shape):
    """The half-plane coordinates lose nothing: gradients of the dense autoencoder lie in the span of the compact rows."""
    inputs, outputs = activations(shape)
    spectra = spectra_of(inputs, outputs)
    for representation in ("complex", "power"):
        compact = random_autoencoder(spectra, representation).rows.detach()
        basis = torch.eye(compact[0].numel(), dtype=torch.float64).view(-1, *compact.shape[1:])
        dense = direct.whole_plane(basis, spectra.layout, representation).flatten(1)
        torch.testing.assert_close(dense @ dense.T, torch.eye(len(dense), dtype=torch.float64))
        s = direct.normalise(direct.represent(direct.spectrum(direct.interaction_field(inputs, outputs)), representation))
        s = s.flatten(2).flatten(0, 1)
        torch.testing.assert_close(s @ dense.T @ dense, s)


@pytest.mark.parametrize("shape", SHAPES)
def test_law_2_parseval(shape):
    inputs, outputs = activations(shape)
    field = direct.interaction_field(inputs, outputs)
    energy = field.abs().square().sum((2, 3, 4))
    torch.testing.assert_close(direct.spectrum(field).abs().square().sum((2, 3, 4)), energy)
    (block,) = ae.blocks(spectra_of(inputs, outputs), AutoencoderSettings())
    torch.testing.assert_close(block.norm.square(), energy)


@pytest.mark.parametrize("shape", ["even", "odd", "strided"])
@pytest.mark.parametrize("balance", ["none", "unit-rms"])
def test_law_3_the_linear_autoencoder_sees_the_same_in_space_and_frequency(shape, balance):
    inputs, outputs = activations(shape)
    results = []
    for domain in ("frequency", "space"):
        settings = AutoencoderSettings(kind="linear", bottleneck=4, balance=balance, domain=domain)
        spectra = spectra_of(inputs, outputs, domain)
        results.append(ae.fidelities(fit_autoencoder(spectra, settings), spectra, settings))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    power = [
        ae.fidelities(fit_autoencoder(spectra, settings), spectra, settings)
        for domain in ("frequency", "space")
        for settings in [AutoencoderSettings(kind="linear", bottleneck=4, representation="power", domain=domain)]
        for spectra in [spectra_of(inputs, outputs, domain)]
    ]
    assert (power[0] - power[1]).abs().max() > 1e-3  # through `power`, "spectral" does matter


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_the_linear_autoencoder_is_the_principal_subspace(representation):
    inputs, outputs = activations("even")
    spectra = spectra_of(inputs, outputs)
    settings = AutoencoderSettings(kind="linear", bottleneck=4, representation=representation)
    network = fit_autoencoder(spectra, settings)
    s, reconstructed = (part.flatten(2).flatten(0, 1) for part in direct.reconstruct(network, inputs, outputs, settings))
    singular = torch.linalg.svdvals(s)
    error = (s - reconstructed).square().sum()
    torch.testing.assert_close(error, singular[4:].square().sum(), rtol=1e-5, atol=1e-8)


def test_the_adaptive_bottleneck_is_the_smallest_that_explains_the_share():
    inputs, outputs = activations("even")
    spectra = spectra_of(inputs, outputs)
    s = direct.normalise(direct.represent(direct.spectrum(direct.interaction_field(inputs, outputs)), "complex"))
    share = torch.linalg.svdvals(s.flatten(2).flatten(0, 1)).square().cumsum(0) / s.shape[0] / s.shape[1]
    for explained in (0.2, 0.5, 0.8):
        settings = AutoencoderSettings(kind="linear", bottleneck=12, explained=explained)
        expected = int((share < explained).sum()) + 1
        assert fit_autoencoder(spectra, settings).bottleneck == expected < 12
    capped = AutoencoderSettings(kind="linear", bottleneck=2, explained=0.99)
    assert fit_autoencoder(spectra, capped).bottleneck == 2


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("kind", ["nonlinear", "linear"])
def test_law_4_symmetries(representation, kind):
    inputs, outputs = activations("even")
    settings = AutoencoderSettings(representation=representation, kind=kind, bottleneck=4, epochs=3)
    spectra = spectra_of(inputs, outputs)
    network = fit_autoencoder(spectra, settings).double()
    fidelity = ae.fidelities(network, spectra, settings)

    outs = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(ae.fidelities(network, spectra_of(inputs, outputs[:, outs]), settings), fidelity[outs])
    refitted = fit_autoencoder(spectra_of(inputs, outputs[:, outs]), settings).double()
    torch.testing.assert_close(
        ae.fidelities(refitted, spectra_of(inputs, outputs[:, outs]), settings), fidelity[outs], rtol=1e-4, atol=1e-5
    )

    ins = torch.tensor([2, 0, 3, 1])
    permuted = spectra_of(inputs[:, ins], outputs)
    if kind == "linear":
        again = fit_autoencoder(permuted, settings)
        torch.testing.assert_close(ae.fidelities(again.double(), permuted, settings), fidelity, rtol=1e-5, atol=1e-6)
    network.rows.data[:, : len(ins)] = network.rows.data[:, ins]
    torch.testing.assert_close(ae.fidelities(network, permuted, settings), fidelity)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_law_4_invariance_under_scaling_the_layer(representation, factor):
    inputs, outputs = activations("odd")
    settings = AutoencoderSettings(representation=representation)
    network = random_autoencoder(spectra_of(inputs, outputs), representation)
    values = [ae.fidelities(network, spectra_of(f * inputs, f * outputs), settings) for f in (1.0, factor)]
    torch.testing.assert_close(*values)


def test_balanced_parts_make_the_fidelity_blind_to_the_loudness_of_a_channel():
    inputs, outputs = activations("even")
    loudness = torch.tensor([0.1, 1, 10, 100, 1000])[:, None, None]
    for balance, expected in (("unit-rms", True), ("none", False)):
        settings = AutoencoderSettings(balance=balance)
        network = random_autoencoder(spectra_of(inputs, outputs), "complex")
        quiet, loud = (ae.fidelities(network, spectra_of(inputs, y), settings) for y in (outputs, loudness * outputs))
        assert torch.allclose(quiet, loud) is expected


@pytest.mark.parametrize("autoencoder", ["linear", "nonlinear"])
@pytest.mark.parametrize("size", [1e-3, 1e-2, 3e-2])
def test_law_5_a_small_perturbation_moves_the_fidelity_little(size, autoencoder):
    inputs, outputs = activations("even")
    settings = AutoencoderSettings(kind=autoencoder, bottleneck=3)
    network = fit_autoencoder(spectra_of(inputs, outputs), settings)
    lipschitz = torch.linalg.matrix_norm(network.encoder.flatten(1), 2)
    lipschitz = lipschitz * torch.linalg.matrix_norm(network.decoder[:-1].flatten(1), 2)
    if autoencoder == "linear":
        torch.testing.assert_close(lipschitz, torch.ones_like(lipschitz))
    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (inputs, outputs)]

    def similarity(scale):
        (block,) = ae.blocks(spectra_of(inputs + scale * noise[0], outputs + scale * noise[1]), settings)
        return network.similarity(block)

    # the field of the noise, relative to the field, per pair
    relative = [direct.interaction_field(*pair).abs().square().sum((2, 3, 4)).sqrt() for pair in ((inputs, outputs), noise)]
    epsilon = size * relative[1] / relative[0]
    (inner, square), (moved_inner, moved_square) = similarity(0.0), similarity(size)
    change = (ae.cosine(inner, square) - ae.cosine(moved_inner, moved_square)).abs()
    assert (change > 0).all()
    bound = 2 * epsilon * (1 + 2 * lipschitz / square.sqrt())
    assert bound.max() < 0.5  # of 2, the largest change that there is
    assert (change <= bound).all()
    assert (change > bound / 100).any()  # so that a bound that is far too large is seen


def test_law_6_same_seed_same_result_bit_for_bit_in_any_order_of_layers():
    layers = {name: spectra_of(*activations(name)) for name in ("even", "odd", "strided")}
    settings = AutoencoderSettings(bottleneck=2, epochs=3, start="random")

    def fit(names):
        return {name: fit_autoencoder(layers[name], settings, layer=name).rows for name in names}

    forward, backward = fit(layers), fit(reversed(layers))
    assert all(torch.equal(forward[name], backward[name]) for name in layers)
    other = fit_autoencoder(layers["even"], AutoencoderSettings(bottleneck=2, epochs=3, start="random", seed=1), layer="even")
    assert not torch.equal(other.rows, forward["even"])
