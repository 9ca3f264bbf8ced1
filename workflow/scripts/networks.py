"""Networks that a job reads, checked to be what the job takes them for."""

from typing import Any

from torch import nn

from scap.errors import DamagedFile
from scap.pruning.files import load_network, read_metadata


def open_network(path: str, *, pruned: bool, architecture: dict | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A network and its metadata; DamagedFile where it is a pruned one in the place of an unpruned one or the reverse, of
    another `architecture` than the configuration's, or its weights are no finite float32 numbers.
    """
    metadata = read_metadata(path)
    if bool(metadata["plan"]) != pruned:
        kinds = {True: "a pruned network", False: "an unpruned network"}
        raise DamagedFile(path, f"is {kinds[not pruned]}, where {kinds[pruned]} belongs")
    if architecture:
        _check_architecture(path, metadata, architecture)
    network = load_network(path)
    for name, values in network.state_dict().items():
        if values.is_floating_point() and str(values.dtype) != "torch.float32":
            raise DamagedFile(path, f"{name!r} is {values.dtype}, not torch.float32")
        if not values.isfinite().all():
            raise DamagedFile(path, f"{name!r} holds NaN or infinity")
    return network, metadata


def _check_architecture(path: str, metadata: dict[str, Any], architecture: dict) -> None:
    found = metadata["architecture"], (metadata["arguments"] or {}).get("width")
    wanted = architecture["architecture"], architecture["width"]
    if found != wanted:
        raise DamagedFile(path, f"is {found[0]} of width {found[1]}, not {wanted[0]} of width {wanted[1]}")
