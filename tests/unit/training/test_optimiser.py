"""The optimiser: which parameter learns at which rate, and a state that is complete from the start."""

import pytest
import torch
from torch import nn

from scap.errors import ScapError
from scap.training.optimiser import Muon, make_optimisers, orthogonalised, set_learning_rate
from scap.training.settings import TrainingSettings


def settings(**changes):
    return TrainingSettings(**{"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "momentum": 0.0, **changes})


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def steps(network, chosen, rate):
    """How far each parameter moves in a step where every gradient is 1 and every weight was 2."""
    optimisers = make_optimisers(network, chosen)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 2)
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimisers, rate)
    for optimiser in optimisers:
        optimiser.step()
    return {name: 2 - parameter.flatten()[0].item() for name, parameter in network.named_parameters()}


def test_biases_of_batch_norms_alone_learn_faster(network):
    moved = steps(network, settings(bias_rate=8, weight_decay=0), 0.01)
    assert moved.pop("1.bias") == pytest.approx(0.08, rel=1e-4)
    assert list(moved.values()) == pytest.approx([0.01] * 5, rel=1e-4)


def test_their_weight_decay_is_that_of_the_others(network):
    with_decay, without = (steps(network, settings(bias_rate=8, weight_decay=decay), 0.01) for decay in (0.5, 0))
    assert [with_decay[name] - without[name] for name in without] == pytest.approx([0.01] * 6, rel=1e-3)


def test_at_a_rate_of_1_it_is_plain_sgd(network):
    (optimiser,) = make_optimisers(network, settings(momentum=0.9))
    (group,) = optimiser.param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in network.parameters()]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, True)


@pytest.mark.parametrize("changes", [{}, {"bias_rate": 8}, {"muon": 0.1}, {"muon": 0.1, "bias_rate": 8}])
def test_every_parameter_is_moved_once_and_has_its_momentum_before_the_first_step(network, changes):
    optimisers = make_optimisers(network, settings(momentum=0.9, **changes))
    moved = [parameter for each in optimisers for group in each.param_groups for parameter in group["params"]]
    assert sorted(map(id, moved)) == sorted(map(id, network.parameters()))
    for parameter, state in (item for each in optimisers for item in each.state.items()):
        assert torch.equal(state["momentum_buffer"], torch.zeros_like(parameter))


@pytest.mark.parametrize("changes", [{"bias_rate": 8}, {"muon": 0.5}])
def test_a_setting_needs_parameters_that_it_is_for(changes):
    (key, value), network = *changes.items(), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm2d(4, affine=False))
    with pytest.raises(ScapError, match=f"^{key}: {value}, but the network has no parameters that it is for; leave it out$"):
        make_optimisers(network, settings(**changes))


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (1, 5), (16, 27)])
def test_orthogonalising_keeps_the_singular_vectors_and_evens_the_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonalised(matrix) @ right.T
    assert ((inner.diagonal() > 0.65) & (inner.diagonal() < 1.25)).all()
    assert torch.allclose(inner, inner.diagonal().diag(), atol=1e-9)


def test_orthogonalising_is_the_published_iteration():
    torch.manual_seed(0)
    matrix = torch.randn(6, 40, dtype=torch.float64)
    expected = matrix / matrix.norm()
    for _ in range(5):
        gram = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    assert torch.allclose(orthogonalised(matrix), expected, atol=1e-10)


def test_float32_is_enough_for_a_kernel_of_the_full_network():
    torch.manual_seed(0)
    matrix = torch.randn(512, 4608) * torch.logspace(0, -3, 512)[:, None]
    exact = orthogonalised(matrix.double())
    assert (orthogonalised(matrix) - exact).norm() < 1e-3 * exact.norm()


def test_a_step_of_muon_turns_a_kernel_by_the_rate_and_keeps_its_length(network):
    kernel, before = network[0].weight, network[0].weight.detach().clone()
    kernel.grad = torch.randn_like(kernel)
    muon = make_optimisers(network, settings(muon=0.5))[1]
    set_learning_rate([muon], 0.1 * 0.02 / 0.5)  # such that this group, whose peak is 0.5, is at 0.02
    muon.step()
    turned = (kernel - before).norm() / before.norm()
    assert 0.6 * 0.02 < turned < 1.3 * 0.02
    assert kernel.norm().item() == pytest.approx(before.norm().item())
    assert ((kernel - before) * kernel.grad).sum() < 0


def test_muon_has_nesterov_momentum(network):
    kernel, first, second = network[0].weight, *torch.randn(2, 3, 1, 3, 3)
    muon = Muon([kernel], lr=0.0, momentum=0.9)
    muon.state[kernel]["momentum_buffer"] = torch.zeros_like(kernel)
    for gradient in (first, second):
        before, kernel.grad = kernel.detach().clone(), gradient.clone()
        muon.param_groups[0]["lr"] = 1e-3
        muon.step()
    step = orthogonalised((second + 0.9 * (second + 0.9 * first)).flatten(1)).view_as(kernel)
    expected = before - 1e-3 * before.norm() * step / 3**0.5
    assert torch.allclose(kernel, expected * before.norm() / expected.norm(), atol=1e-6)


def test_muon_leaves_kernels_without_gradient_or_length_alone(network):
    kernel = network[0].weight
    muon = make_optimisers(network, settings(muon=0.5))[1]
    muon.step()
    nn.init.zeros_(kernel)
    kernel.grad = torch.ones_like(kernel)
    muon.step()
    assert not kernel.any()
