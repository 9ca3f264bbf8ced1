"""Settings of data sets. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar

from scap.errors import ScapError
from scap.settings import Settings, described, option

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # of the normalisation that torchvision's presets use


@described
@dataclass(frozen=True)
class FolderSettings(Settings):
    """How the images of a folder, of any size, become those that the network gets: the presets of torchvision's references."""

    SECTION: ClassVar[str] = "dataset"

    size: int = option("side of the square images that the network gets, pixels", 224, minimum=1)
    resize: int = option("test images: shorter side before the centre is cut out, pixels", 256, minimum=1)
    smallest_crop: float = option(
        "training images: smallest share of its area that a random crop of an image shows", 0.08, exclusiveMinimum=0, maximum=1
    )
    interpolation: str = option("how sizes are changed", "bilinear", choices=("bilinear", "bicubic"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize < self.size:
            raise ScapError(
                f"dataset: resize is {self.resize}, less than size, {self.size}; test images would have black borders"
            )
