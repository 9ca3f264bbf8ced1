"""Scores and compensation of coupled layers."""

import numpy as np
import pytest
import torch
from torch import nn

import scap
from scap.criterion.conditional import conditional_scores
from scap.criterion.groups import fuse_groups
from scap.errors import ScapError
from scap.pruning.compensation import prune_and_compensate
from scap.pruning.surgery import coupled_groups
from scap.pruning.widths import uniform_widths

IMAGES = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Stream(nn.Module):
    """Two readers of a stream that one or two convolutions write; a linear layer at the end."""

    def __init__(self, more=True, channels=5):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.more = nn.Conv2d(3, channels, 1) if more else None
        self.norm = nn.BatchNorm2d(channels)
        self.left, self.right = nn.Conv2d(channels, 3, 3), nn.Conv2d(channels, 4, 1)
        self.head, self.last = nn.Linear(7, 6), nn.Linear(6, 2)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1)

    def forward(self, images):
        x = self.norm(self.stem(images) if self.more is None else self.stem(images) + self.more(images)).relu()
        x = torch.cat([self.left(x).relu().mean((2, 3)), self.right(x).relu().mean((2, 3))], 1)
        return self.last(self.head(x).relu())


def grouped():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


def l1(layer):
    norms = layer.weight.detach().double().abs().flatten(1).sum(1).numpy()
    return (norms - norms.min()) / np.ptp(norms)


def test_the_score_of_a_group_is_the_fusion_of_its_layers_scores():
    network = Stream().eval()
    values = np.stack([l1(network.stem), l1(network.more)])
    expected = {"mean": values.mean(0), "max": values.max(0), "sum": values.sum(0) / 2}
    for how, wanted in expected.items():
        criterion = scap.CriterionSettings(terms={"l1": 1}, together=how)
        table = scap.score_network(network, IMAGES[:1], coupled=True, criterion=criterion)
        assert list(table["layer"].unique()) == ["stem", "left", "right", "head"]
        assert table["score"][table["layer"] == "stem"].to_numpy() == pytest.approx(wanted)
        alone = table["score"][table["layer"] == "left"].to_numpy()
        assert alone == pytest.approx(l1(network.left) / (2 if how == "sum" else 1))


def test_channels_that_go_at_once_have_one_score():
    table = scap.score_network(grouped(), IMAGES[:1], coupled=True, criterion=scap.CriterionSettings(terms={"l1": 1}))
    scores = table["score"].to_numpy().reshape(4, 2)
    assert (scores[:, 0] == scores[:, 1]).all()
    values = np.stack([l1(grouped()[0]), l1(grouped()[2])]).reshape(2, 4, 2)
    assert scores[:, 0] == pytest.approx(values.mean((0, 2)))
    conditional = conditional_scores(grouped(), IMAGES, coupled_groups(grouped(), IMAGES[:1]))["0"].reshape(4, 2)
    assert (conditional[:, 0] == conditional[:, 1]).all()
    assert len(set(conditional[:, 0])) == 4


@pytest.mark.parametrize("form", ["channelwise", "spectral", "taps"])
def test_the_conditional_score_of_a_group_sums_over_what_reads_it(form):
    """Where all but one of its layers give nothing, it is the score of that one alone."""
    coupled, alone = Stream().eval(), Stream(more=False).eval()
    alone.load_state_dict({name: tensor for name, tensor in coupled.state_dict().items() if not name.startswith("more")})
    nn.init.zeros_(coupled.more.weight)
    nn.init.zeros_(coupled.more.bias)
    groups = coupled_groups(coupled, IMAGES[:1])
    assert list(groups["stem"]) == ["stem", "more"]
    found = conditional_scores(coupled, IMAGES, groups, form=form)
    expected = conditional_scores(alone, IMAGES, ["stem", "left", "right"], form=form)
    for layer, scores in expected.items():
        assert found[layer] == pytest.approx(scores)


def test_terms_that_read_activations_take_linear_layers_too():
    criterion = scap.CriterionSettings(terms={"fidelity": 1, "rms": 1, "conditional": 1})
    settings = scap.AutoencoderSettings(bottleneck=2, epochs=1)
    table = scap.score_network(Stream(), IMAGES, coupled=True, criterion=criterion, autoencoder=settings)
    assert table.groupby("layer", sort=False).size().to_dict() == {"stem": 5, "left": 3, "right": 4, "head": 6}
    head = table[table["layer"] == "head"]
    given = []
    network = Stream().eval()
    network.head.register_forward_hook(lambda module, args, output: given.append(output.detach().relu()))
    network(IMAGES)
    assert head["rms"].to_numpy() == pytest.approx(given[0].double().square().mean(0).sqrt().numpy(), rel=1e-3)


def test_what_stays_replaces_a_copy_in_all_layers_of_a_group():
    network = Stream().eval()
    with torch.no_grad():
        for tensor in (network.stem.weight, network.stem.bias, network.more.weight, network.more.bias):
            tensor[4] = tensor[1]
        for tensor in (network.norm.weight, network.norm.bias, network.norm.running_mean, network.norm.running_var):
            tensor[4] = tensor[1]
    plan = {"stem": [0, 1, 2, 3]}
    pruned, table = prune_and_compensate(network, plan, IMAGES, "full", coupled=True)
    assert sorted(table["consumer"]) == ["left", "right"]
    assert pruned.more.out_channels == 4
    expected = network(IMAGES)
    plain = scap.prune_network(network, plan, IMAGES, coupled=True)
    assert (pruned(IMAGES) - expected).abs().max() < 0.02 * (plain(IMAGES) - expected).abs().max()


def test_groups_fit_budgets_and_compensation():
    network = grouped()
    table = scap.score_network(network, IMAGES, coupled=True, criterion=scap.CriterionSettings(terms={"conditional": 1}))
    plan = scap.plan_for(table, network, IMAGES[:1], macs=0.6)
    pruned, done = prune_and_compensate(network, plan, IMAGES, coupled=True)
    assert 0.2 < scap.count_operations(pruned, IMAGES[:1])["macs"] / scap.count_operations(network, IMAGES[:1])["macs"] <= 0.6
    (row,) = done.itertuples()
    assert row.consumer == "4"
    assert row.error_after < row.error_before
    widths = uniform_widths(network, ["0"], IMAGES[:1], macs=0.6)
    assert (
        scap.count_operations(
            scap.prune_network(network, scap.plan_of_widths(table, widths), IMAGES[:1], coupled=True), IMAGES[:1]
        )["macs"]
        <= 0.6 * scap.count_operations(network, IMAGES[:1])["macs"]
    )


def test_layers_name_groups():
    with pytest.raises(ScapError, match="'more' cannot be pruned: it goes with a group, which plans name by 'stem'"):
        scap.score_network(Stream(), IMAGES, layers=["more"], coupled=True)
    with pytest.raises(ScapError, match="'last' cannot be pruned: its channels are outputs of the network"):
        scap.score_network(Stream(), IMAGES, layers=["last"], coupled=True)
    criterion = scap.CriterionSettings(terms={"l1": 1})
    table = scap.score_network(Stream(), IMAGES, layers=["stem"], coupled=True, criterion=criterion)
    assert table["layer"].unique().tolist() == ["stem"]


def test_a_value_that_is_not_finite_is_refused_by_layer_and_term():
    groups = {"a": {"a": np.arange(2), "b": np.arange(2)}}
    with pytest.raises(ScapError, match="layer b: term 'l1'"):
        fuse_groups({"l1": {"a": np.ones(2), "b": np.array([1, np.nan])}}, groups, scap.CriterionSettings(terms={"l1": 1}))
