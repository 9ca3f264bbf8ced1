"""Backward elimination of channels by the structured form of Optimal Brain Surgeon (docs/conditional.md, equations C2, C3)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PENDING = 256  # columns of updates that wait to be applied to the inverse at once, as one product of large matrices


@dataclass
class Problem:
    """Least squares of one consumer: removing block q of its inputs costs tr(W_q (P_qq)⁻¹ W_qᴴ), summed over F parts.

    `moments` (F, D, D): regularised second moments of the D inputs, real or complex; `weights` (F, O, D): W, scaled so that
    the error is the sum of squares; `channels` (K',) of the producer; `blocks` (K', b): the inputs that read each.
    """

    moments: Tensor
    weights: Tensor
    channels: Tensor
    blocks: Tensor

    def energy(self) -> float:
        """tr(W G Wᴴ): what removing every input would cost."""
        return float((self.weights @ self.moments * self.weights.conj()).sum().real)


class Elimination(NamedTuple):
    """Channels in the order of their removal, and what each removal costs (both K)."""

    order: list[int]
    costs: list[float]


def eliminate(problems: list[Problem], channels: int) -> Elimination:
    """Remove the channel whose removal costs least, the channels that stay making up for it, until none is left.

    Costs of several problems add up. Ties go to the channel with the smaller number. The problems are used up.
    """
    states = [_State(problem) for problem in problems]
    left = torch.ones(channels, dtype=torch.bool, device="cpu")
    order, costs = [], []
    for _ in range(channels):
        total = sum((state.costs(channels) for state in states), torch.zeros(channels, dtype=torch.float64, device="cpu"))
        total[~left] = torch.inf
        chosen = int(total.argmin())
        order.append(chosen)
        costs.append(max(0.0, float(total[chosen])))
        left[chosen] = False
        for state in states:
            state.remove(chosen)
    return Elimination(order, costs)


class _State:
    """P = G⁻¹ and W of one problem while channels go; P as P₀ − U·Uᴴ, so that most steps touch only their own columns."""

    def __init__(self, problem: Problem) -> None:
        self.weights = _reduced(problem.weights)
        root = torch.linalg.cholesky(problem.moments)
        problem.moments = problem.weights = torch.empty(0, device="cpu")  # their memory is needed
        self.inverse = torch.cholesky_inverse(root)
        self.channels, self.blocks = problem.channels.tolist(), problem.blocks.to(self.weights.device)
        self.diagonal = self.inverse[:, self.blocks[:, :, None], self.blocks[:, None, :]]  # (F, K', b, b): P_kk
        self.updates, self.gone = self.inverse[:, :, :0], list[int]()

    def costs(self, channels: int) -> Tensor:
        """(K,) cost of removing each channel next; 0 for those that this consumer does not read."""
        read = self.weights[:, :, self.blocks].permute(0, 2, 3, 1)  # (F, K', b, O)
        gram = read.conj() @ read.mT
        if self.blocks.shape[1] == 1:
            cost = (gram.real / self.diagonal.real).sum((0, 2, 3))
        else:
            cost = torch.linalg.solve(self.diagonal, gram).diagonal(dim1=2, dim2=3).real.sum((0, 2))
        return torch.zeros(channels, dtype=torch.float64, device="cpu").index_add(
            0, torch.tensor(self.channels, dtype=torch.long, device="cpu"), cost.cpu()
        )

    def remove(self, channel: int) -> None:
        """W ← W − W_q P_qq⁻¹ P_q·, P ← P − P_·q P_qq⁻¹ P_q·."""
        if channel not in self.channels:
            return
        at = self.channels.index(channel)
        block = self.blocks[at]
        column = self.inverse[:, :, block] - self.updates @ self.updates[:, block].mH
        root = torch.linalg.cholesky(self.diagonal[:, at]).mH  # P_qq = Rᴴ R, so P_qq⁻¹ = R⁻¹ R⁻ᴴ
        update = torch.linalg.solve_triangular(root, column, upper=True, left=False)
        change = torch.linalg.solve_triangular(root, self.weights[:, :, block], upper=True, left=False)
        self.weights = self.weights - change @ update.mH
        self.updates = torch.cat([self.updates, update], 2)
        self.gone += block.tolist()
        keep = [k for k in range(len(self.channels)) if k != at]
        self.channels, self.blocks = [self.channels[k] for k in keep], self.blocks[keep]
        rows = update[:, self.blocks]
        self.diagonal = self.diagonal[:, keep] - rows @ rows.mH
        if self.updates.shape[2] >= PENDING:
            self._apply()

    def _apply(self) -> None:
        """Apply the updates that wait, and forget the inputs that are gone."""
        stay = torch.ones(self.inverse.shape[1], dtype=torch.bool, device=self.inverse.device)
        stay[self.gone] = False
        updates = self.updates[:, stay]
        self.inverse = self.inverse[:, stay][:, :, stay].sub_(updates @ updates.mH)
        self.weights, self.updates, self.gone = self.weights[:, :, stay], updates[:, :, :0], []
        self.blocks = (stay.cumsum(0) - 1)[self.blocks]


def _reduced(weights: Tensor) -> Tensor:
    """W with at most D rows that has the same WᴴW."""
    return torch.linalg.qr(weights, mode="r").R if weights.shape[1] > weights.shape[2] else weights
