"""The public interface: a network of the user's own, scored, pruned, saved and loaded in a few lines."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import scap
from scap.criterion import score
from scap.criterion.activations import record_activations
from scap.criterion.autoencoder import AutoencoderSettings, KeptBlocks, fidelities
from scap.criterion.fitting import Objective, fit_autoencoder, random_autoencoder
from scap.criterion.fusion import normalise_term
from scap.criterion.spectra import open_activations, spectra_of
from scap.criterion.terms import novelty, rms
from scap.errors import DamagedFile, ScapError
from scap.models.build import build_network
from scap.torch_pruning import ScapImportance


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("resnet20", width=0.25).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


SETTINGS = scap.AutoencoderSettings(bottleneck=2, epochs=2)


def in_rounds(network, images, **settings):
    return scap.prune_in_rounds(network, images, 1, macs=0.5, **settings)


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


@pytest.mark.parametrize(("term", "measure"), [("rms", rms), ("novelty", novelty)])
def test_a_term_of_the_activations_is_measured_on_them(network, images, tmp_path, term, measure):
    layers = ["layer1.0.conv1", "layer2.0.conv1"]
    table = scap.score_network(network, images, layers=layers, criterion=scap.CriterionSettings(terms={term: 1}))
    assert list(table.columns) == ["layer", "channel", term, "score"]
    record_activations(network, images, layers, tmp_path / "a", dtype=torch.float32)
    for layer, rows in table.groupby("layer"):
        expected = measure(open_activations(tmp_path / "a", layer)[1])
        np.testing.assert_allclose(rows[term], expected, rtol=1e-3, atol=1e-5)  # float16 caches
        assert rows["score"].tolist() == normalise_term(rows[term].to_numpy(), "min-max").tolist()


@pytest.mark.parametrize("term", ["l1", "random"])
def test_controls_need_no_images(network, term):
    criterion = scap.CriterionSettings(terms={term: 1})
    table = scap.score_network(network, None, layers=["layer1.0.conv1"], criterion=criterion)
    assert list(table.columns) == ["layer", "channel", term, "score"]
    assert table["score"].between(0, 1).all()


@pytest.mark.parametrize(
    ("terms", "wanted"),
    [
        ({"l1": 1}, set()),
        ({"l1": 1, "random": 1}, set()),
        ({"rms": 1}, {"record_activations"}),
        ({"novelty": 1, "l1": 1}, {"record_activations"}),
        ({"fidelity": 1, "l1": 1}, {"record_activations", "write_spectra", "fit_autoencoder"}),
    ],
)
def test_only_what_the_terms_need_is_computed(network, images, monkeypatch, terms, wanted):
    called = set()
    for name in ("record_activations", "write_spectra", "fit_autoencoder"):
        function = getattr(score, name)

        def noting(*args, name=name, function=function, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(score, name, noting)
    criterion = scap.CriterionSettings(terms=terms)
    scap.score_network(network, images, layers=["layer1.0.conv1"], criterion=criterion, autoencoder=SETTINGS)
    assert called == wanted


def test_the_seed_is_that_of_the_term_random(network):
    def scores(seed):
        criterion = scap.CriterionSettings(terms={"random": 1}, seed=seed)
        return scap.score_network(network, None, layers=["layer1.0.conv1"], criterion=criterion)["score"].tolist()

    assert scores(0) == scores(0) != scores(1)


def test_law_6_same_table_bit_for_bit(network, images):
    tables = [scap.score_network(network, images, autoencoder=SETTINGS) for _ in range(2)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("criterion", value) for value in (3, ["l1"], scap.CriterionSettings, scap.AutoencoderSettings())),
        *(("autoencoder", value) for value in ("linear", {"bottleneck": 8}, 3, "", {}, scap.AutoencoderSettings)),
    ],
)
@pytest.mark.parametrize("function", [scap.score_network, ScapImportance, in_rounds])
def test_settings_of_another_class_are_named(network, images, function, key, value):
    name = "CriterionSettings" if key == "criterion" else "AutoencoderSettings"
    with pytest.raises(scap.ScapError, match=rf"(?s)^{key} is .* \({type(value).__name__}\); give scap\.{name}\(\.\.\.\)$"):
        function(network, images, **{key: value})


@pytest.mark.parametrize("criterion", ["l1", "conditional", None])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": "after"}, "outputs: 'after' is unknown; choose from activated, convolution"),
        ({"dtype": "half"}, "dtype: 'half' holds no activations; choose from torch.float16, "),
    ],
)
def test_what_is_recorded_is_checked_where_nothing_is_recorded_too(network, images, criterion, arguments, message):
    with pytest.raises(scap.ScapError, match=message):
        scap.score_network(network, images, criterion=criterion, **arguments)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = scap.prune
    assert set(scap.__all__) == {name for name in scap.__all__ if getattr(scap, name)}


@pytest.mark.parametrize("representation", ["complex", "power"])
@pytest.mark.parametrize("balance", ["none", "unit-rms"])
def test_a_pass_reads_no_value_back(representation, balance):
    """On the device "meta" tensors have no values: what would wait for a GPU raises an error there."""
    settings = AutoencoderSettings(representation=representation, balance=balance, batch_size=2)
    spectra = spectra_of(torch.rand(4, 3, 6, 6), torch.rand(4, 5, 6, 6))
    network = random_autoencoder(spectra, settings, 2, "").to("meta")
    assert Objective(network, KeptBlocks(spectra.to("meta"), settings)).evaluate().is_meta
    assert network.rows.grad.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        network.rows.sum().item()


@pytest.mark.parametrize("term", ["fidelity", "l1", "rms", "random"])
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["block9.conv"], "layer 'block9.conv' is no (ungrouped convolution|convolution or linear layer)"),
        (["bn1"], "layer 'bn1' is no (ungrouped convolution|convolution or linear layer)"),
        ([], "layers: none is given"),
        (3, r"^layers is 3 \(int\); give a list of layers' names"),
        ("conv1", r"^layers is 'conv1' \(str\); give a list of layers' names"),  # no layers c, o, n, v, 1
        (["conv1", 3], r"^layers holds \d \(int\); give a list"),
        ([["conv1"]], r"^layers holds \['conv1'\] \(list\); give a list"),
    ],
)
@pytest.mark.parametrize("coupled", [False, True])
def test_a_layer_that_cannot_be_scored_is_named(network, images, term, layers, message, coupled):
    criterion = scap.CriterionSettings(terms={term: 1})
    with pytest.raises(scap.ScapError, match=message):
        scap.score_network(network, images, layers=layers, criterion=criterion, coupled=coupled)


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, pd.Series, dict.fromkeys])
def test_layers_may_come_in_any_collection(network, images, kind):
    names, criterion = ["layer2.0.conv1", "layer1.0.conv1"], scap.CriterionSettings(terms={"rms": 1})
    expected = scap.score_network(network, images, layers=names, criterion=criterion)
    assert scap.score_network(network, images, layers=kind(names), criterion=criterion).equals(expected)


class Branched(nn.Module):
    """Only training runs `aux` and `hint`."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)
        self.aux, self.hint = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        hidden = self.a(images).relu()
        out = self.head(self.b(hidden).relu().mean((2, 3)))
        return (out, self.hint(self.aux(hidden).relu())) if self.training else out


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("term", ["fidelity", "rms", "novelty", "conditional", "conditional-taps"])
def test_by_default_what_only_training_runs_is_left_out_and_told(term, coupled):
    network, images = Branched(), torch.randn(8, 3, 8, 8)
    assert set(scap.prunable_layers(network, images[:1], coupled=coupled)) == {"a", "b", "aux"}
    criterion = scap.CriterionSettings(terms={term: 1})
    with pytest.warns(UserWarning, match="only training runs are not scored and stay whole: aux;"):
        table = scap.score_network(network, images, criterion=criterion, coupled=coupled)
    assert set(table.layer) == {"a", "b"}
    kept = scap.plan_for(table, network, images[:1], macs=0.7)
    pruned = scap.prune_network(network, kept, images[:1], coupled=coupled)
    assert pruned.aux.out_channels == 4
    pruned.train()(images)
    with pytest.raises(scap.ScapError, match="'aux'"):
        scap.score_network(network, images, criterion=criterion, layers=["a", "aux"], coupled=coupled)


def test_weights_score_layers_that_evaluation_does_not_run(recwarn):
    network, images = Branched(), torch.randn(8, 3, 8, 8)
    table = scap.score_network(network, images, criterion=scap.CriterionSettings(terms={"l1": 1}))
    assert list(dict.fromkeys(table.layer)) == scap.prunable_layers(network, images[:1])
    assert not recwarn.list


def test_a_network_of_which_evaluation_runs_nothing_that_can_be_pruned():
    class Trained(Branched):
        def forward(self, images):
            return super().forward(images) if self.training else images.mean((2, 3))

    with pytest.raises(scap.ScapError, match="evaluation runs no layer that can be pruned"):
        scap.score_network(Trained(), torch.randn(4, 3, 8, 8))


@contextmanager
def coarse_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


MODES = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "coarse products": coarse_products,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("representation", ["complex", "power", "magnitude"])
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_scores_do_not_depend_on_the_mode_of_the_caller(network, images, kind, representation, mode):
    settings = scap.AutoencoderSettings(kind=kind, representation=representation, bottleneck=2, epochs=3)
    layers = scap.prunable_layers(network, images[:1])[:2]
    expected = scap.score_network(network, images, layers=layers, autoencoder=settings)
    with MODES[mode]():
        table = scap.score_network(network, images, layers=layers, autoencoder=settings)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


def test_a_criterion_by_the_name_of_a_term_or_by_terms():
    network, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.rand(16, 3, 8, 8)
    for short, terms in (("l1", {"l1": 1}), ({"novelty": 1, "l1": 2}, {"novelty": 1, "l1": 2})):
        whole = scap.score_network(network, images, criterion=scap.CriterionSettings(terms=terms))
        pd.testing.assert_frame_equal(scap.score_network(network, images, criterion=short), whole)
    for wrong, message in (
        ("novel", "did you mean 'novelty'"),
        ({}, "name one at least"),
        ("", "terms: '' is unknown"),
        (3, "give scap.CriterionSettings"),
    ):
        with pytest.raises(scap.ScapError, match=message):
            scap.score_network(network, images, criterion=wrong)


@pytest.mark.parametrize("bias", [None, 1.0])
def test_layers_whose_inputs_never_change_are_scored(bias):
    """Their spectra span one direction, which float32 decompositions fail at now and then."""
    for seed in range(25):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        images = torch.randn(24, 3, 8, 8)
        if bias is None:
            images.zero_()
        else:
            nn.init.zeros_(network[0].weight)
            nn.init.constant_(network[0].bias, bias)
        settings = scap.AutoencoderSettings(representation="power")
        table = scap.score_network(network, images, criterion="fidelity", autoencoder=settings)
        assert table["score"].between(0, 1).all()


@pytest.mark.parametrize(
    ("term", "scale", "message"),
    [
        ("rms", 1e6, r"^activations: the 0\.outputs reach \S+, more than float16 holds; use `dtype: float32`$"),
        ("novelty", float("nan"), r"^activations: the 0\.outputs hold NaN or infinity; the network has diverged"),
        ("fidelity", 1.0, r"^spectra of layer '0': the outputs reach \S+, more than float16 holds; use `dtype: float32`$"),
    ],
)
def test_values_that_do_not_fit_are_not_those_of_a_file_that_is_gone(images, term, scale, message):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    nn.init.constant_(network[0].weight, scale)
    nn.init.constant_(network[0].bias, 10_000)
    with pytest.raises(ScapError, match=message):
        scap.score_network(network, images, criterion=term, autoencoder=SETTINGS)


def test_an_error_about_a_file_keeps_its_place_and_its_class(tmp_path):
    path = tmp_path / "activations.safetensors"
    with (
        pytest.raises(DamagedFile, match=r"/activations\.safetensors: is missing; make it again$"),
        score._saying_of_what(path),
    ):
        raise DamagedFile(path, "is missing")
