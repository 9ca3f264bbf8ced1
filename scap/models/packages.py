"""Networks that others wrote: torchvision's, timm's, and those of a user's own file."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from scap.data.torchvision_cure import import_torchvision
from scap.errors import ScapError
from scap.models.names import EXTRAS

GENERAL = ("classes", "in_channels")  # what build_network is given whatever the architecture
# Arguments that load weights: a network is built again whenever a file of it is read.
LOADING = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "weights_backbone")


def torchvision_network(
    name: str, weights: str | None = None, *, classes: int | None = None, in_channels: int = 3, **arguments: Any
) -> nn.Module:
    """torchvision's network `name`; a head for other `classes` than its weights were trained for is left untrained."""
    what = f"architecture torchvision:{name}"
    models = _imported("torchvision", import_torchvision).models
    _check_name(what, name, models.list_models())
    _check_arguments(what, arguments)
    if in_channels != 3:
        raise ScapError(f"{what}: it takes images of 3 channels, not {in_channels}; timm's networks take any number")
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None  # else they are downloaded unasked
    sized = arguments if classes is None else arguments | {"num_classes": classes}
    if weights is None:
        return _called(what, lambda: models.get_model(name, weights=None, **sized))
    offered = models.get_model_weights(name)
    if weights not in offered.__members__:  # DEFAULT is one of them
        raise ScapError(f"weights: {what} offers no {weights!r}; choose one of {', '.join(offered.__members__)}")
    trained = _downloaded(what, lambda: models.get_model(name, weights=offered[weights], **arguments))
    if classes is not None:
        _replace_head(trained, _called(what, lambda: models.get_model(name, weights=None, **sized)))
    return trained


def _replace_head(trained: nn.Module, fresh: nn.Module) -> None:
    """Take the modules whose parameters have other shapes, for the number of classes, from `fresh`."""
    shapes = {name: value.shape for name, value in fresh.named_parameters()}
    differing = {name.rpartition(".")[0] for name, value in trained.named_parameters() if value.shape != shapes[name]}
    for module in differing:
        trained.set_submodule(module, fresh.get_submodule(module))


def timm_network(
    name: str, weights: str | None = None, *, classes: int | None = None, in_channels: int = 3, **arguments: Any
) -> nn.Module:
    """timm's network `name`; weights by tag are part of the name (resnet50.a1_in1k)."""
    what = f"architecture timm:{name}"
    _imported("torchvision", import_torchvision)  # timm imports it: cured first
    timm = _imported("timm", lambda: importlib.import_module("timm"))
    if not timm.is_model(name):  # also keeps out names that fetch from elsewhere (hf-hub:...)
        _check_name(what, name, timm.list_models())
    _check_arguments(what, arguments)
    if weights not in (None, "DEFAULT"):
        raise ScapError(f"weights: {what} has DEFAULT only; a tag is part of the name (timm:resnet50.a1_in1k)")
    sized = {} if classes is None else {"num_classes": classes}

    def build() -> nn.Module:
        return timm.create_model(name, pretrained=weights is not None, in_chans=in_channels, **sized, **arguments)

    return _called(what, build) if weights is None else _downloaded(what, build)


def own_network(path: Path, function: str, **arguments: Any) -> nn.Module:
    """What `function` of the file `path` returns for the arguments; `classes` and `in_channels` where it takes them."""
    what = f"architecture {path}:{function}"
    with _importable(path.parent):
        build = getattr(_called(what, lambda: _module(path)), function, None)
        if not callable(build):
            raise ScapError(f"{what}: the file has no function {function!r}")
        parameters = inspect.signature(build).parameters
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        wanted = {name: value for name, value in arguments.items() if takes_any or name in parameters or name not in GENERAL}
        network = _called(what, lambda: build(**wanted))
    if not isinstance(network, nn.Module):
        raise ScapError(f"{what}: returns {type(network).__name__}; it must return a torch.nn.Module")
    return network


def _module(path: Path) -> ModuleType:
    """The file, run as a module of a name of its own, so that it shadows no package."""
    name = f"scap_own_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ScapError(f"architecture: {path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)  # dataclasses look it up there
    specification.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A user's file may import those beside it; installed packages of the same name come first."""
    sys.path.append(str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _imported(package: str, imports: Callable[[], ModuleType]) -> ModuleType:
    try:
        return imports()
    except ImportError as error:
        raise ScapError(f"{package} cannot be imported ({error}); pip install '.[{EXTRAS[package]}]'") from error


def _check_name(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=3)
        raise ScapError(f"{what}: there is no such network" + (f"; did you mean {' or '.join(close)}?" if close else ""))


def _check_arguments(what: str, arguments: dict[str, Any]) -> None:
    for name in LOADING:
        if name in arguments:
            raise ScapError(f"{what}: the argument {name!r} loads weights; leave it out and give `weights`")


def _called(what: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ScapError:
        raise
    except Exception as error:  # other people's code: anything can come out of it
        reason = " ".join(str(error).split())
        raise ScapError(f"{what}: {type(error).__name__}: {reason}") from error


def _downloaded(what: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ScapError(
            f"weights: those of {what} cannot be downloaded ({reason}); where there is no network, give a file instead, or "
            "copy it from a machine that has one"
        ) from error
    except Exception as error:
        raise ScapError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error
