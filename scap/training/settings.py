"""Settings of a training run and the learning rate that follows from them."""

import math
from dataclasses import asdict, dataclass

from scap.errors import ScapError

CHOICES = {
    "schedule": ("one-cycle", "cosine"),
    "precision": ("float32", "bfloat16"),
    "padding": ("black", "reflected"),
}
SCHEDULES, PRECISIONS, PADDINGS = CHOICES.values()
POSITIVE = ("batch_size", "learning_rate", "temperature", "bias_rate")
NOT_NEGATIVE = ("epochs", "weight_decay", "crop", "cutout")
FRACTIONS = ("warmup", "distillation")
FRACTIONS_BELOW_1: dict[str, str] = {  # and what 1 would do
    "momentum": "never forget a gradient",
    "label_smoothing": "hide the labels",
    "ema": "keep the starting weights",
    "muon": "turn kernels by their whole length",
}


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser with Nesterov momentum, learning-rate schedule, augmentation, regularisation; 0 or False turns a part off.

    `learning_rate` is the peak of SGD, `warmup` the fraction of the steps that lead up to it. `muon` is the peak of the step
    of a convolution's kernel, as a share of its length, under orthogonalised momentum; 0: by SGD like all else.
    `bias_rate` multiplies the rate of the biases of batch norms (1: no difference) and divides their weight decay. `crop`
    is the padding, `black` or `reflected`, and `cutout` the side of the square, in pixels. `flip` mirrors by chance, with
    `alternating_flip` every image in every second epoch. `small_images` are the sides in pixels of the images of the
    first epochs, one for each. `ema` is the decay per step of the weights' moving average, `distillation` the weight
    of the teacher's logits, softened by `temperature`, against that of the labels. `precision` is that of
    convolutions and linear layers; weights, sums and measurements are float32 either way, and so is everything on
    hardware that does not compute in bfloat16.
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
    muon: float = 0.0
    bias_rate: float = 1.0
    padding: str = "black"
    alternating_flip: bool = False
    small_images: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "small_images", tuple(self.small_images))  # a configuration has lists
        for key, value in asdict(self).items():
            _check(key, value)
        self._check_together()

    def _check_together(self) -> None:
        if self.alternating_flip and not self.flip:
            raise ScapError("alternating_flip: true without flip would mirror nothing; set flip to true as well")
        if self.padding != "black" and not self.crop:
            raise ScapError(f"padding: {self.padding!r} with crop 0 would do nothing; set crop, or leave padding out")
        if len(self.small_images) > self.epochs:
            count = len(self.small_images)
            raise ScapError(f"small_images: {count} sizes for {self.epochs} epochs; give at most one an epoch")

    def side_in(self, epoch: int) -> int | None:
        """Side in pixels of the images of `epoch`, counted from 0; None where they stay as they are."""
        return self.small_images[epoch] if epoch < len(self.small_images) else None


def _check(key: str, value: object) -> None:
    """Raise ScapError if no run could have `value` for the setting `key`, whatever the others are."""
    if key in CHOICES and value not in CHOICES[key]:
        raise ScapError(f"{key}: {value!r} is unknown; choose from {', '.join(CHOICES[key])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ScapError(f"{key}: {value} is not a finite number")
    for number in (value,) if isinstance(value, int | float) else ():
        _check_number(key, number)
    if key == "small_images" and not all(isinstance(side, int) and side > 0 for side in value):  # type: ignore[attr-defined]
        raise ScapError(f"{key}: {list(value)} must be whole numbers of pixels above 0")  # type: ignore[call-overload]


def _check_number(key: str, value: float) -> None:
    if key in POSITIVE and not value > 0:
        raise ScapError(f"{key}: {value} is not above 0")
    if key in NOT_NEGATIVE and not value >= 0:
        raise ScapError(f"{key}: {value} is below 0")
    if key in FRACTIONS and not 0 <= value <= 1:
        raise ScapError(f"{key}: {value} is not in 0..1")
    if key in FRACTIONS_BELOW_1 and not 0 <= value < 1:
        raise ScapError(f"{key}: {value} is not from 0 to below 1 (1 would {FRACTIONS_BELOW_1[key]})")


def learning_rate_at(settings: TrainingSettings, progress: float) -> float:
    """Learning rate at `progress` 0..1 of the training: linear warmup, then a fall to 0.

    The fall is a line for one-cycle (Smith, Topin 2018), half a cosine for cosine (Loshchilov, Hutter 2017).
    """
    if progress < settings.warmup:
        return settings.learning_rate * progress / settings.warmup
    left = (1 - progress) / max(1 - settings.warmup, 1e-12)
    share = left if settings.schedule == "one-cycle" else math.sin(math.pi / 2 * left) ** 2
    return settings.learning_rate * share
