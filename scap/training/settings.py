"""Settings of a training run and the learning rate that follows from them."""

import math
from dataclasses import asdict, dataclass

from scap.errors import ScapError

SCHEDULES = ("one-cycle", "cosine")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainingSettings:
    """SGD with Nesterov momentum, learning-rate schedule, augmentation, regularisation; 0 turns a part off.

    `learning_rate` is the peak, `warmup` the fraction of the steps that lead up to it, `crop` the padding and
    `cutout` the side of the square in pixels, `ema` the decay per step of the weights' moving average,
    `distillation` the weight of the teacher's logits, softened by `temperature`, against that of the labels.
    `precision` is that of convolutions and linear layers; weights, sums and measurements are float32 either way, and
    so is everything on hardware that does not compute in bfloat16.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    warmup: float = 0.2
    label_smoothing: float = 0.0
    flip: bool = False
    crop: int = 0
    cutout: int = 0
    ema: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for key, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, key) not in choices:
                raise ScapError(f"{key}: {getattr(self, key)!r} is unknown; choose from {', '.join(choices)}")
        fractions = ("momentum", "warmup", "label_smoothing", "ema", "distillation")
        for key, value in asdict(self).items():
            if key in ("batch_size", "learning_rate", "temperature") and not value > 0:
                raise ScapError(f"{key}: {value} is not above 0")
            if key in ("epochs", "weight_decay", "crop", "cutout") and not value >= 0:
                raise ScapError(f"{key}: {value} is below 0")
            if key in fractions and not 0 <= value <= 1:
                raise ScapError(f"{key}: {value} is not in 0..1")


def learning_rate_at(settings: TrainingSettings, progress: float) -> float:
    """Learning rate at `progress` 0..1 of the training: linear warmup, then a fall to 0.

    The fall is a line for one-cycle (Smith, Topin 2018), half a cosine for cosine (Loshchilov, Hutter 2017).
    """
    if progress < settings.warmup:
        return settings.learning_rate * progress / settings.warmup
    left = (1 - progress) / max(1 - settings.warmup, 1e-12)
    share = left if settings.schedule == "one-cycle" else math.sin(math.pi / 2 * left) ** 2
    return settings.learning_rate * share
