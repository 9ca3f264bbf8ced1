"""Settings of a training run and the learning rate that follows from them. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from scap.errors import ScapError
from scap.settings import Settings, described, option

SHARE: dict[str, Any] = {"minimum": 0, "maximum": 1}
LARGEST = 10**6  # far above all that is of use, far below what float32 and float64 no longer hold
BELOW_ONE: dict[str, Any] = {"minimum": 0, "exclusiveMaximum": 1}


@described
@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Optimiser with Nesterov momentum, learning-rate schedule, augmentation, regularisation; 0 or False turns a part off."""

    SECTION: ClassVar[str] = "training"

    epochs: int = option("passes over the training images", minimum=0)
    batch_size: int = option("images per step", minimum=1)
    learning_rate: float = option("peak learning rate of SGD", exclusiveMinimum=0, maximum=LARGEST)
    momentum: float = option("momentum of SGD", 0.9, **BELOW_ONE)
    weight_decay: float = option("L2 penalty", 5e-4, minimum=0, maximum=LARGEST)
    schedule: str = option(
        "how the learning rate falls to zero after the warmup: in a line, or as half a cosine",
        "one-cycle",
        choices=("one-cycle", "cosine"),
    )
    warmup: float = option("share of the steps that lead up to the peak", 0.2, **SHARE)
    label_smoothing: float = option("label smoothing", 0.0, **BELOW_ONE)
    flip: bool = option("horizontal flips", False)
    crop: int = option("random crops after padding by this many pixels", 0, minimum=0)
    cutout: int = option("side of a square that is blanked, pixels", 0, minimum=0)
    ema: float = option("decay per step of the weights' moving average, which is what is kept", 0.0, **BELOW_ONE)
    distillation: float = option("weight of the teacher's softened logits against that of the labels", 0.0, **SHARE)
    temperature: float = option("temperature of the distillation", 4.0, exclusiveMinimum=0, maximum=LARGEST)
    precision: str = option(
        "of convolutions and linear layers; bfloat16 where the hardware computes in it (most GPUs, CPUs with AVX-512 BF16 or "
        "AMX), else float32; weights, sums and measurements are float32 either way",
        "float32",
        choices=("float32", "bfloat16"),
    )
    saved_precision: str = option(
        "what kernels are rounded to at the end; those of float16 need half the space in files, and are computed with in "
        "float32 all the same",
        "float32",
        choices=("float32", "float16"),
    )
    muon: float = option(
        "peak step of a convolution's kernel, as a share of its length, by orthogonalised momentum; all else is trained by SGD",
        0.0,
        **BELOW_ONE,
    )
    bias_rate: float = option(
        "multiplies the rate of the biases of batch norms and divides their weight decay",
        1.0,
        minimum=1 / LARGEST,
        maximum=LARGEST,
    )
    padding: str = option("what random crops see outside of an image", "black", choices=("black", "reflected"))
    alternating_flip: bool = option("mirror every image in every second epoch, where `flip` mirrors by chance", False)
    small_images: list[int] = option(
        "sides in pixels of the images of the first epochs, one for each", [], minimum=1, repeats=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alternating_flip and not self.flip:
            raise ScapError("training: alternating_flip without flip would mirror nothing; set flip to true as well")
        if self.padding != "black" and not self.crop:
            raise ScapError(f"training: padding {self.padding!r} with crop 0 would do nothing; set crop, or leave padding out")
        if len(self.small_images) > self.epochs:
            sizes = f"{len(self.small_images)} sizes for {self.epochs} epochs"
            raise ScapError(f"training: small_images holds {sizes}; give at most one an epoch")

    def side_in(self, epoch: int) -> int | None:
        """Side in pixels of the images of `epoch`, counted from 0; None where they stay as they are."""
        return self.small_images[epoch] if epoch < len(self.small_images) else None


def learning_rate_at(settings: TrainingSettings, progress: float) -> float:
    """Learning rate at `progress` 0..1 of the training: linear warmup, then a fall to 0.

    The fall is a line for one-cycle (Smith, Topin 2018), half a cosine for cosine (Loshchilov, Hutter 2017).
    """
    if progress < settings.warmup:
        return settings.learning_rate * progress / settings.warmup
    left = (1 - progress) / max(1 - settings.warmup, 1e-12)
    share = left if settings.schedule == "one-cycle" else math.sin(math.pi / 2 * left) ** 2
    return settings.learning_rate * share
