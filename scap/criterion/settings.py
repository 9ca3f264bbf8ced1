"""Settings of the criterion. Imports no torch: the workflow reads them before any job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from scap.checks import shown
from scap.criterion.terms import RAW, TERMS
from scap.errors import ScapError
from scap.settings import Settings, choose, described, given, option

HEAVIEST = 10**6  # weight of a term: sums of larger ones would lose the others, or be infinite
NORMALISATIONS = ("raw", "min-max", "max", "mean")


@described
@dataclass(frozen=True)
class CriterionSettings(Settings):
    """How a channel's importance is made of its terms; the workflow's `criteria` have the same keys.

    Example:
        >>> import scap
        >>> scap.CriterionSettings(terms={"novelty": 1, "l1": 1}, fusion="product").fusion
        'product'
        >>> scap.CriterionSettings(terms={"novel": 1})
        Traceback (most recent call last):
        scap.errors.ScapError: criterion: terms: 'novel' is unknown; did you mean 'novelty'?
    """

    SECTION: ClassVar[str] = "criterion"

    terms: Mapping[str, float] = option(
        "terms of the score and their weights: shares of a sum, exponents of a product", {"fidelity": 0.75, "l1": 0.25}
    )
    fusion: str = option("how the terms are fused", "sum", choices=("sum", "product"))
    normalise: Mapping[str, str] = option(
        "scale of a term over a layer: raw, min-max, max or mean; a term that is not named here keeps its own scale where "
        "that is [0, 1] (random, conditional), else min-max",
        {},
    )
    together: str = option(
        "how the values of coupled layers, channel by channel, are made one of their group (score_network(coupled=True)); a "
        "sum is divided by the most channels that go at once anywhere in the network",
        "mean",
        choices=("mean", "sum", "max"),
    )
    reverse: bool = option("reverse the ranking (a control)", False)
    seed: int = option("seed of the term random", 0, minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.terms, Mapping) or not self.terms:
            raise ScapError(f"criterion: terms is {shown(self.terms)}; name one at least, with its weight: {{fidelity: 1}}")
        for term, weight in self.terms.items():
            if term not in TERMS:
                raise ScapError(f"criterion: terms: {term!r} is unknown; {choose(term, TERMS)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= HEAVIEST:
                raise ScapError(f"criterion: terms: the weight of {term!r} is {shown(weight)}; it must be from 0 to 1e+06")
        if not any(self.terms.values()):
            raise ScapError("criterion: terms: all weights are 0; give one of them a weight above 0")
        self._check_normalise()

    def scale_of(self, term: str) -> str:
        """How a term is scaled over a layer."""
        return self.normalise.get(term, "raw" if term in RAW else "min-max")

    def _check_normalise(self) -> None:
        if not isinstance(self.normalise, Mapping):
            raise ScapError(f"criterion: normalise is {shown(self.normalise)}; give a scale by term: {{fidelity: raw}}")
        for term, how in self.normalise.items():
            if term not in self.terms:
                raise ScapError(f"criterion: normalise: {term!r} is no term of this criterion; {choose(term, self.terms)}")
            if how not in NORMALISATIONS:
                raise ScapError(f"criterion: normalise: {term} {how!r} is unknown; {choose(how, NORMALISATIONS)}")


@described
@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """What docs/method.md leaves open about the autoencoder; `autoencoder` of the workflow's criteria has the same keys.

    Example:
        >>> import scap
        >>> settings = scap.AutoencoderSettings(representation="power", bottleneck=32)
        >>> settings.kind
        'nonlinear'
    """

    SECTION: ClassVar[str] = "autoencoder"

    representation: str = option(
        "r: real and imaginary parts, power, magnitude or its logarithm; the last two cannot be factorised and are slow",
        "complex",
        choices=("complex", "power", "magnitude", "log-magnitude"),
    )
    domain: str = option("spectrum, or no Fourier transform at all (a control)", "frequency", choices=("frequency", "space"))
    balance: str = option("scale both parts of the field to unit RMS per image, or not", "none", choices=("none", "unit-rms"))
    kind: str = option(
        "trained with a nonlinear bottleneck, or linear in closed form (principal subspace)",
        "nonlinear",
        choices=("nonlinear", "linear"),
    )
    activation: str = option("nonlinearity of the bottleneck", "tanh", choices=("tanh", "relu"))
    bottleneck: int = option("bottleneck size d; the largest one where `explained` is set", 8, minimum=1, maximum=65536)
    explained: float = option(
        "adaptive bottleneck: the smallest size that explains this share of the spectral energy; 0: fixed size",
        0.0,
        minimum=0,
        exclusiveMaximum=1,
    )
    start: str = option(
        "initial weights: the principal subspace (no seed matters), or random", "principal", choices=("principal", "random")
    )
    loss: str = option("squared error of unit spectra, or 1 - cosine", "squared", choices=("squared", "cosine"))
    epochs: int = option("passes over the calibration images after which no further step is taken", 20, minimum=1)
    tolerance: float = option(
        "training ends when the loss has settled: ten steps of L-BFGS have not lowered it by this share",
        0.003,
        minimum=0,
        exclusiveMaximum=1,
    )
    batch_size: int = option("calibration images that are evaluated at a time", 64, minimum=1)
    seed: int = option("seed of the initial weights", 0, minimum=0, maximum=2**32 - 1)
    workspace_mb: int = option(
        "memory for what is kept of the spectra between passes, and for those that direct evaluation builds at once, MiB",
        512,
        minimum=1,
    )


@described
@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """Which activations are recorded."""

    SECTION: ClassVar[str] = "calibration"

    images: int = option("calibration images N, drawn from the training images by the seed", 256, minimum=1)
    outputs: str = option(
        "where Y is read: after batch norm and activation, or the convolution's own output",
        "activated",
        choices=("activated", "convolution"),
    )
    dtype: str = option("precision of cached activations and spectra", "float16", choices=("float16", "float32"))


Criterion = CriterionSettings | Mapping[str, float] | str | None  # what functions take: also terms and weights, or one term


def checked_settings(
    criterion: Criterion, autoencoder: AutoencoderSettings | None
) -> tuple[CriterionSettings, AutoencoderSettings]:
    """What a function was given, or the defaults; ScapError where it was given anything else."""
    if isinstance(criterion, str | Mapping):
        criterion = CriterionSettings({criterion: 1} if isinstance(criterion, str) else criterion)
    return (
        given(CriterionSettings() if criterion is None else criterion, CriterionSettings, "criterion"),
        given(AutoencoderSettings() if autoencoder is None else autoencoder, AutoencoderSettings, "autoencoder"),
    )
