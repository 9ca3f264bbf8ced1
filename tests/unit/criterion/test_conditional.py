"""Conditional fidelity: its recursions against explicit least squares, its scale, invariances, and what it refuses."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from scap.criterion.conditional import conditional_scores
from scap.criterion.elimination import Problem, eliminate
from scap.criterion.forms import FORMS
from scap.errors import ScapError

ALL = sorted(FORMS)


def settled(network, images):
    """In float64 and evaluation mode, with batch norms that matter."""
    network = network.double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def chain(channels=5, kernel=3, stride=1, padding=1, seed=0, size=6, images=12):
    """Convolution, batch norm, relu, convolution, batch norm; and its calibration images."""
    torch.manual_seed(seed)
    data = torch.randn(images, 3, size, size, dtype=torch.float64)
    network = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 4, kernel, stride, padding),
        nn.BatchNorm2d(4),
    )
    return settled(network, data), data


def slope(norm):
    return norm.weight.abs() / (norm.running_var + norm.eps).sqrt()


def explicit_cost(samples, weights, removed, ridge):
    """Least error of samples (n, D) @ weights (O, D)ᵀ without the columns `removed`, each input having extra energy."""
    count, width = samples.shape
    extra = (ridge * (samples.abs() ** 2).mean(0)).sqrt()
    kept = [column for column in range(width) if column not in removed]
    wanted = samples[:, removed] @ weights[:, removed].mT / count**0.5
    cost = ((extra[removed] * weights[:, removed]).abs() ** 2).sum()
    if kept:
        wanted = torch.cat([wanted, wanted.new_zeros(len(kept), len(weights))])
        regressors = torch.cat([samples[:, kept] / count**0.5, torch.diag(extra[kept]).to(samples)])
        wanted = wanted - regressors @ torch.linalg.lstsq(regressors, wanted, driver="gelsd").solution
    return float(cost + (wanted.abs() ** 2).sum())


def brute_force(parts, blocks, ridge):
    """Greedy removal over (samples, weights) pairs by explicit least squares of every candidate at every step."""
    channels, left, costs, order = len(blocks), list(range(len(blocks))), [], []
    while left:
        trials = {}
        for candidate in left:
            removed = [column for channel in [*order, candidate] for column in blocks[channel]]
            trials[candidate] = sum(explicit_cost(samples, weights, removed, ridge) for samples, weights in parts)
        best = min(trials, key=trials.__getitem__)
        order.append(best)
        costs.append(trials[best])
        left.remove(best)
    scores = np.empty(channels)
    scores[order] = np.array(costs) / costs[-1]
    return scores


def unfolded(network, data):
    """(n, K, T) what the second convolution reads, by torch's own unfold."""
    read, conv = network[:3](data), network[3]
    columns = functional.unfold(read, conv.kernel_size, padding=conv.padding, stride=conv.stride)
    return columns.movedim(1, 2).flatten(0, 1).unflatten(1, (read.shape[1], -1)).detach()


def explicit_parts(form, network, data):
    """Samples and weights of each form, from their definitions."""
    weights = (slope(network[4])[:, None, None, None] * network[3].weight).detach()
    if form == "taps":
        return [(unfolded(network, data).flatten(1), weights.flatten(1))]
    read = network[:3](data).detach()
    inside = functional.unfold(torch.ones_like(read[:1, :1]), 3, padding=1)[0].mean(1).view(3, 3)  # share of positions
    weighed = weights * inside.sqrt()
    if form == "channelwise":
        columns = unfolded(network, data)
        pooled = columns.movedim(2, 0).flatten(0, 1) / inside.mean().sqrt()
        return [(pooled, weighed.flatten(2).movedim(2, 0).flatten(0, 1))]
    height, width = (size + 2 for size in read.shape[2:])
    spectra = torch.fft.fft2(read, s=(height, width), norm="ortho") / (read.shape[2] * read.shape[3]) ** 0.5
    kernels = torch.fft.fft2(weighed, s=(height, width)).conj()
    return [(spectra[..., u, v], kernels[..., u, v]) for u in range(height) for v in range(width)]


@pytest.mark.parametrize("form", ALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_greedy_step_equals_brute_force(form, seed):
    network, data = chain(seed=seed)
    blocks = [list(range(9 * k, 9 * k + 9)) if form == "taps" else [k] for k in range(5)]
    expected = brute_force(explicit_parts(form, network, data), blocks, ridge=1e-2)
    found = conditional_scores(network, data, ["0"], form=form, ridge=1e-2, batch_size=5)["0"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_delayed_updates_equal_explicit_inverses(monkeypatch):
    """Blocks of three inputs, some never removed, complex moments in two parts, with updates applied every other step."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 40, 17, dtype=torch.complex128, generator=generator)
    weights = torch.randn(2, 23, 17, dtype=torch.complex128, generator=generator)
    blocks = torch.tensor([[0, 5, 9], [1, 2, 3], [16, 4, 10], [6, 7, 8]])
    moments = samples.mT @ samples.conj() / 40 + 0.1 * torch.eye(17)
    monkeypatch.setattr("scap.criterion.elimination.PENDING", 4)
    order, costs = eliminate([Problem(moments.clone(), weights.clone(), torch.arange(4), blocks)], 4)
    expected, removed = [], []
    for channel in order:
        removed += blocks[channel].tolist()
        gone = weights[:, :, removed]
        kept = [column for column in range(17) if column not in removed]
        schur = moments[:, removed][:, :, removed] - moments[:, removed][:, :, kept] @ torch.linalg.solve(
            moments[:, kept][:, :, kept], moments[:, kept][:, :, removed]
        )
        expected.append(float((gone @ schur * gone.conj()).sum().real))
    np.testing.assert_allclose(np.cumsum(costs), expected, rtol=1e-9)


def test_first_step_is_unfaithful_energy_times_what_the_consumer_makes_of_it():
    """E(1 − F)·‖w‖², F the share of a channel's energy that a linear autoencoder of the others reconstructs."""
    network, data = chain()
    samples = unfolded(network, data).movedim(2, 0).flatten(0, 1)
    weights = explicit_parts("channelwise", network, data)[0][1]
    costs = []
    for channel in range(5):
        others = [k for k in range(5) if k != channel]
        coded = samples[:, others] @ torch.linalg.lstsq(samples[:, others], samples[:, channel]).solution
        fidelity = functional.cosine_similarity(coded, samples[:, channel], dim=0).square()
        costs.append(float(samples[:, channel].square().mean() * (1 - fidelity) * weights[:, channel].square().sum()))
    total = float((samples @ weights.T).square().sum(1).mean())
    scores = conditional_scores(network, data, ["0"], ridge=1e-12)["0"]
    assert scores.argmin() == np.argmin(costs)
    assert scores.min() == pytest.approx(min(costs) / total, rel=1e-6)


@pytest.mark.parametrize("form", ALL)
def test_of_two_equal_channels_exactly_one_stays(form):
    network, data = chain(channels=6)
    with torch.no_grad():
        for tensor in (network[0].weight, network[0].bias, *network[1].parameters(), *network[1].buffers()):
            if tensor.ndim:
                tensor[4] = tensor[1]
    scores = conditional_scores(network, data, ["0"], form=form)["0"]
    pair = sorted(scores[[1, 4]])
    assert pair[0] < 1e-4  # free, as its twin stays
    assert pair[1] > 0.01


@pytest.mark.parametrize("form", ALL)
def test_permuted_channels_have_permuted_scores(form):
    network, data = chain()
    order = torch.tensor([3, 0, 4, 1, 2])
    other = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (other[0].weight, other[0].bias, *other[1].parameters(), *other[1].buffers()):
            if tensor.ndim:
                tensor.copy_(tensor[order])
        other[3].weight.copy_(other[3].weight[:, order])
    before, after = (conditional_scores(n, data, ["0"], form=form)["0"] for n in (network, other))
    np.testing.assert_allclose(after, before[order], rtol=1e-9)


@pytest.mark.parametrize("form", ALL)
def test_a_channel_scaled_with_its_consumers_weights_keeps_its_score(form):
    network, data = chain()
    factors = torch.tensor([1.0, 1e-3, 5, 1, 200], dtype=torch.float64)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[1].weight.mul_(factors)
        other[1].bias.mul_(factors)
        other[3].weight.div_(factors[:, None, None])
    before, after = (conditional_scores(n, data, ["0"], form=form)["0"] for n in (network, other))
    np.testing.assert_allclose(after, before, rtol=1e-7)


def test_forms_agree_for_1x1_kernels_on_1x1_maps():
    network, data = chain(kernel=1, padding=0, size=1)
    scores = [conditional_scores(network, data, ["0"], form=form, ridge=1e-3)["0"] for form in ALL]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-9)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 0), (2, 1), (3, 0)])
def test_channelwise_and_taps_agree_for_any_1x1_kernel(stride, padding):
    network, data = chain(kernel=1, stride=stride, padding=padding, size=9)
    scores = [conditional_scores(network, data, ["0"], form=form, ridge=1e-3)["0"] for form in ("channelwise", "taps")]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-9)


class TwoSizes(nn.Module):
    """One producer that is read from maps of 4x4 and, pooled, of 1x1."""

    def __init__(self):
        super().__init__()
        self.first, self.large, self.small = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, images):
        read = self.first(images).relu()
        return self.large(read).mean((2, 3)) + self.small(functional.avg_pool2d(read, 4)).flatten(1)


def test_consumers_of_maps_of_several_sizes_weigh_alike_in_all_forms():
    """On maps that are constant over space only one frequency is there, and each position counts as any other."""
    torch.manual_seed(0)
    network = TwoSizes().double().eval()
    data = torch.randn(40, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 4, 4).contiguous()
    scores = [conditional_scores(network, data, ["first"], form=form, ridge=1e-3)["first"] for form in ALL]
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-9)


def test_the_reported_relative_error_is_the_measured_one():
    """Channels up to a score removed, the consumer's weights fitted to the rest: its outputs are off by that score."""
    network, data = chain(channels=6)
    scores = conditional_scores(network, data, ["0"], form="taps", ridge=1e-12)["0"]
    for removed in (1, 3, 5):
        order = scores.argsort()
        kept = sorted(order[removed:].tolist())
        read = unfolded(network, data)
        wanted = read.flatten(1) @ network[3].weight.flatten(1).T
        smaller = copy.deepcopy(network)
        fitted = torch.linalg.lstsq(read[:, kept].flatten(1), wanted).solution
        with torch.no_grad():
            smaller[3].weight.zero_()
            smaller[3].weight[:, kept] = fitted.T.unflatten(1, (len(kept), 3, 3))
            error, energy = (smaller(data) - network(data)).square().sum(), (slope(network[4]) * wanted).square().sum()
        assert float(error / energy) == pytest.approx(scores[order[removed - 1]], rel=1e-6)


@pytest.mark.parametrize("form", ALL)
def test_scores_lie_in_0_to_1_and_the_last_channel_has_1(form):
    network, data = chain(channels=9)
    scores = conditional_scores(network, data, ["0"], form=form)["0"]
    assert scores.dtype == np.float64
    assert scores.min() >= 0
    assert scores.max() == pytest.approx(1, abs=1e-9)
    assert len(np.unique(scores)) >= 7  # a channel or two may be silent


class Branches(nn.Module):
    """A channel's readers: a strided convolution, a concatenation beside another producer, a grouped one, a linear head."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.strided, self.joined = nn.Conv2d(4, 3, 3, 2), nn.Conv2d(9, 6, 1)
        self.grouped, self.head = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(4 * 9, 2)

    def forward(self, images):
        first, other = self.first(images).relu(), self.other(images).relu()
        pooled = functional.max_pool2d(first, 2).flatten(1)
        parts = [self.strided(first), self.joined(torch.cat([other, first], 1)), self.grouped(first), self.head(pooled)]
        return [part.flatten(1) for part in parts]


def test_several_consumers_add_up():
    """By taps, against brute force: inputs of other producers always help, groups of a convolution only themselves."""
    torch.manual_seed(0)
    network, data = Branches().double().eval(), torch.randn(40, 3, 8, 8, dtype=torch.float64)
    network.requires_grad_(False)
    first, other = network.first(data).relu(), network.other(data).relu()

    def cells(read, kernel, stride=1):
        return functional.unfold(read, kernel, stride=stride).movedim(1, 2).flatten(0, 1)

    grouped = network.grouped.weight
    parts = [
        (cells(first, 3, 2), network.strided.weight.flatten(1), lambda k: range(9 * k, 9 * k + 9)),
        (cells(torch.cat([other, first], 1), 1), network.joined.weight.flatten(1), lambda k: [5 + k]),
        (cells(first[:, :2], 3), grouped[:3].flatten(1), lambda k: range(9 * k, 9 * k + 9) if k < 2 else []),
        (cells(first[:, 2:], 3), grouped[3:].flatten(1), lambda k: range(9 * k - 18, 9 * k - 9) if k >= 2 else []),
        (functional.max_pool2d(first, 2).flatten(1), network.head.weight, lambda k: range(9 * k, 9 * k + 9)),
    ]

    def cost(removed):
        gone = [([c for k in removed for c in columns(k)], u, w.detach()) for u, w, columns in parts]
        return sum(explicit_cost(u, w, columns, 1e-2) for columns, u, w in gone)

    total = sum(float((u @ w.T).square().sum(1).mean()) for u, w, _ in parts)
    total += sum(float((1e-2 * u.square().mean(0) * w.square()).sum()) for u, w, _ in parts)
    order, expected = [], np.empty(4)
    for _ in range(4):
        trials = {k: cost([*order, k]) for k in range(4) if k not in order}
        order.append(min(trials, key=trials.__getitem__))
        expected[order[-1]] = trials[order[-1]] / total
    found = conditional_scores(network, data, ["first"], form="taps", ridge=1e-2)["first"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for form in ("channelwise", "spectral"):
        scores = conditional_scores(network, data, ["first", "other"], form=form)
        assert all(values.min() >= 0 and values.max() <= 1 for values in scores.values())
        assert scores["first"].max() < 1  # the other producer's channels stay


def test_a_small_map_counts_what_is_read():
    """On 1x1 maps only the central tap of a 3x3 kernel reads anything, and all forms say so."""
    network, data = chain(size=1, images=60)
    central = copy.deepcopy(network)
    central[3] = nn.Conv2d(5, 4, 1).double()
    with torch.no_grad():
        central[3].weight.copy_(network[3].weight[:, :, 1:2, 1:2])
        central[3].bias.copy_(network[3].bias)
    expected = conditional_scores(central, data, ["0"], ridge=1e-3)["0"]
    for form in ALL:
        found = conditional_scores(network, data, ["0"], form=form, ridge=1e-3)["0"]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_large_maps_are_tiled_and_their_positions_sampled():
    """Statistics of many positions barely depend on which are taken; the ranking of distinct channels not at all."""
    torch.manual_seed(0)
    data = torch.randn(24, 3, 40, 44)
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3)), data.double()).float()
    scores = {form: conditional_scores(network, data, ["0"], form=form)["0"] for form in ALL}
    read = network[:2](data).double().detach()
    exact = torch.einsum("nchw,ndhw->cd", read, read)
    weights = network[2].weight.double().detach().flatten(2)
    energy = torch.einsum("ock,cd,odk->", weights, exact, weights)
    removal = [float(weights[:, k].square().sum() / torch.linalg.inv(exact)[k, k] / energy) for k in range(4)]
    assert scores["channelwise"].min() == pytest.approx(min(removal), rel=0.1)
    assert scores["spectral"].argmin() == scores["channelwise"].argmin() == np.argmin(removal)


def test_channels_that_are_always_zero_are_free():
    network, data = chain()
    with torch.no_grad():
        network[1].weight[2] = 0
        network[1].bias[2] = -1
    for form in ALL:
        scores = conditional_scores(network, data, ["0"], form=form)["0"]
        assert scores[2] == 0
        assert np.sort(scores)[1] > 0


def test_batch_size_and_precision_hardly_matter_and_the_network_is_left_alone():
    network, data = chain(channels=8, images=30)
    before = copy.deepcopy(network.state_dict())
    network.train()
    reference = conditional_scores(network, data, ["0"], batch_size=30)["0"]
    np.testing.assert_allclose(conditional_scores(network, data, ["0"], batch_size=7)["0"], reference, rtol=1e-9)
    np.testing.assert_allclose(conditional_scores(network.float(), data.float(), ["0"])["0"], reference, rtol=1e-3)
    assert network.training
    assert all(torch.equal(value, before[name].to(value.dtype)) for name, value in network.state_dict().items())
    assert not network[3]._forward_hooks


def test_progress_is_reported():
    network, data = chain()
    told = []
    conditional_scores(network, data, ["0"], report=told.append)
    assert told == [{"layer": 1, "total": 1}]


def test_too_few_images_are_said():
    network, data = chain(channels=40, size=2)
    with pytest.warns(UserWarning, match=r"layer '0': 3 calibration images give fewer samples .* 90 images"):
        conditional_scores(network, data[:3], ["0"], form="taps")
    data = data.repeat(8, 1, 1, 1)
    with pytest.warns(UserWarning, match=r"layer '0': 89 calibration images .* 90 images"):
        conditional_scores(network, data[:89], ["0"], form="taps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conditional_scores(network, data[:90], ["0"], form="taps")
        conditional_scores(network, data[:48], ["0"])


def replaced(data, value):
    data = data.clone()
    data[0, 0, 0, 0] = value
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, x: (n, x, {"form": "channels"}), "form: 'channels' is unknown; choose from channelwise, spectral, taps"),
        (lambda n, x: (n, replaced(x, torch.nan), {}), "images: they hold NaN or infinity"),
        (lambda n, x: (n, x[0], {}), r"images: a tensor \(N, channels, H, W\) of at least 2"),
        (lambda n, x: (n, x[:1], {}), r"at least 2 calibration images is needed, not \(1, 3, 6, 6\)"),
        (lambda n, x: (n, x, {"batch_size": 0}), "batch_size is 0"),
        (lambda n, x: (n, x, {"ridge": float("nan")}), "ridge is nan"),
        (lambda n, x: (n, x, {"layers": ["1"]}), "layer '1' is no convolution of the network"),
        (lambda n, x: (n, x, {"layers": ["3"]}), "layer '3' has no conditional score: its channels are outputs of the network"),
    ],
)
def test_mistakes_are_named(change, message):
    network, data, options = change(*chain())
    layers = options.pop("layers", ["0"])
    with pytest.raises(ScapError, match=message):
        conditional_scores(network, data, layers, **options)


@pytest.mark.parametrize("form", ALL)
def test_activations_that_are_not_finite_name_their_layer(form):
    network, data = chain()
    with torch.no_grad():
        network[0].bias[0] = torch.inf
    with pytest.raises(ScapError, match=r"(layer '3' reads NaN|layer '0' has no conditional score)"):
        conditional_scores(network, data, ["0"], form=form)


def test_values_that_overflow_while_streaming_name_their_layer():
    """Fine on the first images, too large for float32 later."""
    network, data = chain()
    network, data = network.float(), data.float()
    data[-1] *= 1e25
    for form in ALL:
        with pytest.raises(ScapError, match=r"layer '3' reads NaN, infinity or values too large for float32"):
            conditional_scores(network, data, ["0"], form=form)


@pytest.mark.parametrize("form", ALL)
def test_values_whose_squares_are_lost_name_their_layer(form):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False))
    with pytest.raises(
        ScapError, match=r"^layer '2' reads values too small for float32 on the calibration images: scale them$"
    ):
        conditional_scores(network, torch.rand(8, 3, 8, 8) * 1e-25, ["0"], form=form)


@pytest.mark.parametrize("form", ALL)
def test_equal_channels_without_a_ridge_are_refused_or_ranked(form):
    """Rounding decides whether the moments of equal channels can be inverted; a traceback of the solver never comes out."""
    network, data = chain(channels=6)
    with torch.no_grad():
        for tensor in (network[0].weight, network[0].bias, *network[1].parameters(), *network[1].buffers()):
            if tensor.ndim:
                tensor[4] = tensor[1]
    try:
        scores = conditional_scores(network, data, ["0"], form=form, ridge=0)["0"]
    except ScapError as error:
        assert "layer '0': what its consumers read depends on itself linearly; give a larger ridge" in str(error)  # noqa: PT017
    else:
        assert np.isfinite(scores).all()
