"""The optimisers of a training run: SGD with Nesterov momentum and, for kernels of convolutions, Muon."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from scap.errors import ScapError
from scap.training.settings import TrainingSettings

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Of the polynomial a s + b s^3 + c s^5 that, repeated, brings every singular value s in 0..1 near 1 (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, repeats: int = 5) -> Tensor:
    """About U V^T for `matrix` = U S V^T (rows, columns): all singular values between 0.7 and 1.2, but for tiny ones.

    The polynomial acts on the smaller Gram matrix G, as X <- P(G) X means G <- P G P: at 512 x 4608 in a third of the time.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T, repeats).T
    a, b, c = NEWTON_SCHULZ
    unit = matrix / (matrix.norm() + 1e-12)
    gram = unit @ unit.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    product = identity
    for _ in range(repeats):
        factor = a * identity + b * gram + c * (gram @ gram)
        gram, product = factor @ gram @ factor, factor @ product
    return product @ unit


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

    A step turns a kernel (outputs, ...), seen as a matrix with one row per output, by `lr` times its own length and keeps
    the length: what follows a batch norm does not depend on it, and so needs no weight decay. Nesterov momentum.
    """

    def __init__(self, kernels: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Turn every kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    velocity = self.state[kernel]["momentum_buffer"].mul_(group["momentum"]).add_(kernel.grad)
                    _turn(kernel, kernel.grad.add(velocity, alpha=group["momentum"]), group["lr"])


def _turn(kernel: Tensor, direction: Tensor, rate: float) -> None:
    length, rows = kernel.norm(), direction.flatten(1)
    step = orthogonalised(rows).view_as(direction) / min(rows.shape) ** 0.5
    kernel.sub_(rate * length * step)
    kernel.mul_(length / kernel.norm().clamp(min=1e-30))


def norm_biases(network: nn.Module) -> list[Tensor]:
    """The biases of all batch norms, in the order of the network."""
    return [module.bias for module in network.modules() if isinstance(module, NORMS) and module.bias is not None]


def kernels(network: nn.Module) -> list[Tensor]:
    """The weights of all convolutions, in the order of the network."""
    return [module.weight for module in network.modules() if isinstance(module, CONVOLUTIONS)]


def without(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> list[Tensor]:
    """Those `parameters` that are not among `others`."""
    taken = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in taken]


def _sgd(parameters: Sequence[Tensor], biases: Sequence[Tensor], settings: TrainingSettings) -> torch.optim.SGD:
    """Biases learn at `bias_rate` times the rate of the others, with as much less weight decay, which so is alike in a step.

    So did Page (2019, "How to train your ResNet") and Jordan (2024, arXiv:2404.00498).
    """
    groups = [
        {"params": members, "weight_decay": settings.weight_decay / factor, "factor": factor}
        for members, factor in ((without(parameters, biases), 1.0), (biases, settings.bias_rate))
        if members
    ]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0)


def make_optimisers(network: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """The optimisers that together move every parameter of `network` once, their state complete before the first step."""
    turned = _demanded(kernels(network), "muon", settings.muon, 0)
    biases = _demanded(norm_biases(network), "bias_rate", settings.bias_rate, 1)
    pushed = without(network.parameters(), turned)
    optimisers: list[torch.optim.Optimizer] = [_sgd(pushed, biases, settings)] if pushed else []
    if turned:
        optimisers.append(Muon(turned, settings.muon, settings.momentum))
        optimisers[-1].param_groups[0]["factor"] = settings.muon / settings.learning_rate
    for optimiser in optimisers:
        for parameter in (parameter for group in optimiser.param_groups for parameter in group["params"]):
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)  # as the first step would make it
    return optimisers


def _demanded(parameters: list[Tensor], key: str, value: float, off: float) -> list[Tensor]:
    """`parameters` where the setting `key` is on; ScapError if it is and there are none."""
    if value != off and not parameters:
        raise ScapError(f"{key}: {value}, but the network has no parameters that it is for; leave it out")
    return parameters if value != off else []


def set_learning_rate(optimisers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Let every group learn at `rate` times its own factor, so that all are at their peaks at once."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
