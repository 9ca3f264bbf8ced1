"""SCAP's scores as an importance that Torch-Pruning's pruners take. Needs the package torch-pruning (extra `plugin`)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_pruning.pruner import function as functions

from scap.criterion.activations import checked_images, part
from scap.criterion.fusion import combined, scaled
from scap.criterion.groups import fused
from scap.criterion.score import evaluate_terms
from scap.criterion.settings import AutoencoderSettings, Criterion, checked_settings
from scap.criterion.terms import Values, needs
from scap.errors import ScapError
from scap.models.inputs import Example, device_and_precision, fitted, gathered, run
from scap.models.layers import weighted_layers
from scap.models.modes import evaluating
from scap.pruning.copies import check_network, copied, undisturbed
from scap.pruning.next_layers.consumers import find_consumers
from scap.pruning.surgery import coupled_groups

OUTPUTS = (
    functions.prune_conv_out_channels,
    functions.prune_depthwise_conv_out_channels,
    functions.prune_linear_out_channels,
)
Members = dict[str, tuple[list[int], list[int]]]  # layer -> its output channels, and the place of each in the importance


class ScapImportance(torch_pruning.importance.Importance):
    """The importance of the channels of a group of torch_pruning, by a criterion of SCAP.

    Terms of one layer are normalised over each convolution and linear layer that gives channels of the group, and fused
    channel by channel as `criterion.together` says (a sum is not divided). Conditional terms are those of SCAP's own group.
    Scores are made again when the network's weights have changed, as between the steps of iterative pruning.

    Args:
        network: The network that the pruner prunes in place.
        images: Calibration images, as for `scap.score_network`.
        criterion: As in `scap.score_network`.
        autoencoder: The autoencoder of the term `fidelity`.

    Raises:
        ScapError: When a pruner asks for a group that the criterion has no score for, with the reason.

    Example:
        >>> import scap, torch, torch_pruning
        >>> from scap.torch_pruning import ScapImportance
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> images = torch.rand(64, 3, 8, 8)
        >>> importance = ScapImportance(network, images, criterion="conditional")
        >>> pruner = torch_pruning.pruner.BasePruner(
        ...     network, images[:1], importance, pruning_ratio=0.5, ignored_layers=[network[2]]
        ... )
        >>> pruner.step()
        >>> network[0].out_channels
        4
    """

    def __init__(
        self,
        network: nn.Module,
        images: Example,
        criterion: Criterion = None,
        autoencoder: AutoencoderSettings | None = None,
    ) -> None:
        check_network(network)
        self.network, self.images = network, checked_images(gathered(images))
        self.criterion, self.autoencoder = checked_settings(criterion, autoencoder)
        self._made_for: Any = None
        self._terms: dict[str, dict[str, Values]] = {}
        self._reasons: dict[str, str] = {}

    def __call__(self, group: Any) -> Tensor | None:
        """(U,) importance of the channels of a group's root; None where no layer gives them."""
        members = self._members(group)
        if not members:
            return None
        self._score()
        units = 1 + max(max(places) for _, places in members.values())
        parts = [self._part(term, members, units) for term in self.criterion.terms]
        return torch.from_numpy(combined(parts, self.criterion)).float()

    def _members(self, group: Any) -> Members:
        names = {module: name for name, module in weighted_layers(self.network).items()}
        place = {root: number for number, root in enumerate(group[0].root_idxs)}
        members: Members = {}
        for item in group:
            dependency, channels = item[0], item[1]
            if dependency.layer in names and dependency.pruning_fn in OUTPUTS and None not in item.root_idxs:
                own, places = members.setdefault(names[dependency.layer], ([], []))
                own += channels
                places += [place[root] for root in item.root_idxs]
        return members

    def _part(self, term: str, members: Members, units: int) -> Values:
        """A term's importance of each unit."""
        found, whole = self._terms[term], "network" in needs(term)
        layers = [layer for layer in members if layer in found]
        layers = [layer for layer in layers if len(set(members[layer][1])) == units][:1] if whole else layers
        if not layers:
            layer = next(iter(members))
            reason = next((self._reasons[name] for name in members if name in self._reasons), "it is not read as a group")
            raise ScapError(
                f"layer {layer!r} has no score by the term {term!r}: {reason}. Put it among the pruner's ignored_layers, "
                "or use another term"
            )
        values = [scaled(term, found[layer], self.criterion)[members[layer][0]] for layer in layers]
        places: NDArray[np.int64] = np.concatenate([members[layer][1] for layer in layers])
        return fused(np.concatenate(values), places, "mean" if whole else self.criterion.together)

    def _score(self) -> None:
        """Evaluate all terms, where the weights are not those that they were evaluated for."""
        now = [(tuple(parameter.shape), parameter._version, id(parameter)) for parameter in self.network.parameters()]
        if now == self._made_for:
            return
        terms = self.criterion.terms
        groups, self._reasons = self._groups() if any("network" in needs(term) for term in terms) else ({}, {})
        names = _used_once(self.network, part(self.images, 0, 1))
        self._terms = evaluate_terms(self.network, self.images, names, groups, self.criterion, self.autoencoder)
        self._made_for = now

    def _groups(self) -> tuple[Mapping[str, Any], dict[str, str]]:
        """SCAP's groups whose readers can be told, and why others have no conditional score."""
        image = part(self.images, 0, 1)
        groups = coupled_groups(self.network, image)
        readers = find_consumers(self.network, list(groups), image, coupled=True)
        reasons = {layer: found.obstacle for layer, found in readers.items() if found.obstacle}
        return {name: members for name, members in groups.items() if name not in reasons}, reasons


def _used_once(network: nn.Module, image: Example) -> list[str]:
    """Convolutions and linear layers that run once on an image."""
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    with undisturbed(network):
        network = evaluating(copied(network))
        for name, module in weighted_layers(network).items():
            module.register_forward_hook(count(name))
        run(network, fitted(image, *device_and_precision(network)))
    return [name for name, number in calls.items() if number == 1]
