"""Architectures and layers by name, without importing torch: what can be built, and which convolutions can be pruned."""

import importlib.util
from pathlib import Path

from scap.errors import ScapError
from scap.settings import choose

# Output channels of the convolutions of each block: Simonyan and Zisserman 2015, configuration D.
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# Residual blocks in each of the three stages: He et al. 2015, section 4.2.
RESNET_BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}

PRUNABLE = {
    "vgg16": [f"conv{i}_{j}" for i, block in enumerate(VGG16_BLOCKS, 1) for j in range(1, len(block) + 1)],
    # Only the first convolution of a residual block: the others write into the residual stream, which couples them.
    **{
        name: [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(blocks)]
        for name, blocks in RESNET_BLOCKS.items()
    },
}
RESNET_STAGES = (16, 32, 64)
EXTRAS = {"torchvision": "data", "timm": "models"}  # packages whose networks can be built -> extra of scap that installs them
FORMS = "torchvision:NAME, timm:NAME, FILE.py:FUNCTION"


def scaled(channels: int, width: float) -> int:
    """Number of channels at relative `width`, rounded, at least 1."""
    if width <= 0:
        raise ScapError(f"width: {width} is not above 0; give a factor such as 1 or 0.25")
    return max(1, round(channels * width))


def output_channels(architecture: str, width: float) -> dict[str, int]:
    """Output channels of the layers of a built-in architecture that can be pruned, at relative `width`."""
    if architecture in RESNET_BLOCKS:
        full = [RESNET_STAGES[int(layer.split(".")[0].removeprefix("layer")) - 1] for layer in PRUNABLE[architecture]]
    else:
        full = [channels for block in VGG16_BLOCKS for channels in block]
    return {layer: scaled(channels, width) for layer, channels in zip(PRUNABLE[architecture], full, strict=True)}


def own_function(architecture: str) -> tuple[Path, str] | None:
    """The file and the function that `FILE.py:FUNCTION` names, else None."""
    file, separator, function = architecture.rpartition(":")
    return (Path(file), function) if separator and file.endswith(".py") else None


def check_architecture(architecture: str) -> None:
    """Check a name for build_network as far as can be told without importing torch or running code.

    Args:
        architecture: A key of PRUNABLE, `torchvision:NAME`, `timm:NAME` or `FILE.py:FUNCTION`.

    Raises:
        ScapError: For an unknown name, a package that is not installed and a file that is not there.
    """
    if not isinstance(architecture, str):
        raise ScapError(f"architecture: {architecture!r} is no name; give one of {', '.join(PRUNABLE)}, {FORMS}")
    if architecture in PRUNABLE:
        return
    if own := own_function(architecture):
        if not own[0].is_file():
            raise ScapError(f"architecture {architecture}: there is no file {own[0]}; its path is relative to {Path.cwd()}")
        if not own[1].isidentifier():
            raise ScapError(f"architecture {architecture}: {own[1]!r} cannot be a function's name; write FILE.py:FUNCTION")
        return
    package, separator, name = architecture.partition(":")
    if not (separator and name and package in EXTRAS):
        known = [*PRUNABLE, *EXTRAS]
        raise ScapError(f"architecture: {architecture!r} is unknown; {choose(package, known)} Other networks: {FORMS}")
    if importlib.util.find_spec(package) is None:
        raise ScapError(f"architecture {architecture}: {package} is not installed; pip install '.[{EXTRAS[package]}]'")
