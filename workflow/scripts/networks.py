"""Networks that a job reads, checked to be what the job takes them for."""

from typing import Any

from torch import nn

from scap.errors import DamagedFile
from scap.pruning.files import load_network, load_unpruned, read_metadata


def open_unpruned(path: str, architecture: dict) -> tuple[nn.Module, dict[str, Any]]:
    """A baseline and its metadata; DamagedFile where it is a pruned network, or not the one of this configuration."""
    metadata = read_metadata(path)
    if metadata["plan"]:
        raise DamagedFile(path, "is a pruned network, where an unpruned one belongs")
    return checked(path, load_unpruned(path, run_code=trusted(metadata, architecture)), metadata, architecture)


def open_pruned(path: str, architecture: dict) -> tuple[nn.Module, dict[str, Any]]:
    """A pruned network and its metadata; DamagedFile where it is unpruned, or not the one of this configuration."""
    metadata = read_metadata(path)
    if not metadata["plan"]:
        raise DamagedFile(path, "is an unpruned network, where a pruned one belongs")
    return checked(path, load_network(path, run_code=trusted(metadata, architecture)), metadata, architecture)


def trusted(metadata: dict[str, Any], architecture: dict) -> bool:
    """Whether a file's network is made by the function that the configuration itself names, so that it may be run."""
    return metadata["architecture"] == architecture["architecture"]


def checked(path: str, network: nn.Module, metadata: dict[str, Any], architecture: dict) -> tuple[nn.Module, dict[str, Any]]:
    """The same; DamagedFile where it is of another architecture, or its weights are no finite float32 numbers."""
    found = {"architecture": metadata["architecture"], **(metadata["arguments"] or {})}
    for key in ("architecture", "width"):
        if key in found and found[key] != architecture.get(key, found[key]):
            raise DamagedFile(path, f"is of {key} {found[key]}, not of {architecture[key]}")
    for name, values in network.state_dict().items():
        if values.is_floating_point() and str(values.dtype) != "torch.float32":
            raise DamagedFile(path, f"{name!r} is {values.dtype}, not torch.float32")
        if not values.isfinite().all():
            raise DamagedFile(path, f"{name!r} holds NaN or infinity")
    return network, metadata
