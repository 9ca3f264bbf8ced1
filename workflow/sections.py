"""The sections of the configuration: what an entry of each may hold. config/schema.json is made from them."""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import ClassVar

from scap.criterion.settings import AutoencoderSettings, CalibrationSettings, CriterionSettings
from scap.data.settings import FolderSettings
from scap.data.sources import FOLDER, RAW_FILES
from scap.settings import option
from scap.training.settings import TrainingSettings
from workflow.figures import FIGURES, TABLES

NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*(?!\n)$"
SHARE = {"exclusiveMinimum": 0, "maximum": 1}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the images of a data set come from."""

    source: str = option(
        "scikit-learn's digits, a data set of torchvision, or a folder of images of one's own", choices=(*RAW_FILES, FOLDER)
    )
    root: str | None = option(
        "folder that holds the official files, or train/CLASS and val/CLASS with images; needed for all but digits", None
    )
    download: bool = option("download official files where they are missing", True)


def with_left_out(base: type, cls: type, where: str) -> type:
    """A dataclass with the fields of a settings class too, None where they are left out: no default where they have no use."""
    entries = []
    for each in fields(cls):
        about = f"{each.metadata['description']} ({where}; {each.default} where it is left out)"
        entries.append((each.name, each.type | None, field(default=None, metadata={**each.metadata, "description": about})))
    return make_dataclass(f"{base.__name__}And{cls.__name__}", entries, bases=(base,), frozen=True, kw_only=True)


class Dataset(with_left_out(Source, FolderSettings, "`source: folder`")):  # type: ignore[misc]  # the base is made here
    """Data sets by name."""


@dataclass(frozen=True, kw_only=True)
class Schedule(TrainingSettings):
    """Schedules of fine-tuning by name; `none` (no training at all) is always there."""

    start: str = option(
        "weights to start from: those of the pruned network, or fresh ones (a control)", "pruned", choices=("pruned", "scratch")
    )
    rounds: int = option(
        "prune and train in so many rounds, each by scores of what the one before left; wants a budget (`macs` or `params`)",
        1,
        minimum=1,
        maximum=99,
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network that someone else made."""

    file: str = option("a safetensors file, or one by torch.save that holds tensors only")
    prefix: str = option("what stands before every name in the file, such as `module.`", "")
    key: str | None = option("where the file wraps the weights, the key that holds them, such as `state_dict`", None)
    sha256: str | None = option("the file's SHA-256, or its first 8 digits at least", None)
    leave_out: list[str] | None = option(
        "modules that keep fresh weights, such as a head for other classes, which `baseline` then trains", None
    )


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What the images are normalised by, where it is not their own mean and deviation."""

    mean: list[float] = option("of each channel, intensities in 0..1", minimum=0, maximum=1, repeats=True)
    std: list[float] = option("of each channel", exclusiveMinimum=0, maximum=1, repeats=True)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Networks by name; the wildcard {network}."""

    architecture: str = option("built by scap.models: vgg16, resnet20, ..., torchvision:NAME, timm:NAME, FILE.py:FUNCTION")
    dataset: str = option("name of an entry of `datasets`")
    width: float = option("multiplies all numbers of channels of a built-in architecture", 1.0, minimum=0.02, maximum=8)
    layers: list[str] | None = option("convolutions to analyse and prune; all that can be pruned where it is left out", None)
    coupled: bool = option(
        "prune groups of layers that must lose their channels together, `layers` being those that groups are named by", False
    )
    train_images: int | None = option("train on this many images only; all where it is left out", None, minimum=1)
    holdout: int = option("training images never trained on, for choices and curves", 0, minimum=0)
    multiple: int = option("channel counts are rounded up to a multiple of this, those of `uniform` widths down", 1, minimum=1)
    min_channels: int = option("a layer keeps this many channels at least, or all that it has", 1, minimum=1)
    gpu: int = option(
        "1: on a GPU where there is one, and a cluster is asked for it; 0: on the CPU; more: fine-tuning in as many processes, "
        "each on a GPU of its own, which share every batch; all else takes one",
        0,
        minimum=0,
        maximum=64,
    )
    baseline: TrainingSettings | None = option("training of the baseline, from scratch or from `weights`", None)
    weights: Checkpoint | str | None = option(
        "trained weights, which are the baseline unless `baseline` trains them further: a checkpoint; DEFAULT (or another "
        "name) for those that torchvision or timm offer; `own` for those that a function of one's own returns",
        None,
    )
    normalisation: Normalisation | None = option("of the images; the data set's own where it is left out", None)
    finetuning: dict[str, Schedule] = option("schedules of fine-tuning by name", {})


@dataclass(frozen=True, kw_only=True)
class Criterion(CriterionSettings):
    """Criteria by name; the wildcard {criterion}."""

    autoencoder: AutoencoderSettings = option("the autoencoder of the term fidelity, where it differs from the defaults", {})
    calibration: CalibrationSettings = option("the activations that are recorded, where they differ from the defaults", {})


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """Compensations by name, the wildcard {compensation}: what the next layers are told about the channels that went."""

    how: str = option("what is fitted again", choices=("none", "batch-norm", "channelwise", "full"))
    images: int = option("calibration images, drawn from the training images by the seed", 512, minimum=2)
    ridge: float = option(
        "keeps the new weights small: of `full`, its square of `channelwise`", 0.01, exclusiveMinimum=0, maximum=1e6
    )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Two budgets that hold at once."""

    macs: float = option("the share of FLOPs that is left", **SHARE)
    params: float = option("the share of parameters that is left", **SHARE)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Runs: every combination of what is listed."""

    networks: list[str] = option("networks")
    seeds: list[int] = option("seeds of training and calibration", minimum=0, maximum=2**32 - 1)
    criteria: list[str] = option("criteria")
    widths: list[str] = option(
        "where the number of channels a layer keeps comes from: `own` scores, those of another criterion by its name, or the "
        "same share of every layer at the FLOPs of either (`uniform`, `uniform-NAME`)",
        ["own"],
    )
    thresholds: list[float] = option("thresholds: channels that score as much are kept", [], minimum=0, maximum=1)
    macs: list[float] = option("budgets: the share of FLOPs that is left", [], **SHARE)
    params: list[float] = option("budgets: the share of parameters that is left", [], **SHARE)
    budgets: list[Budget] = option("budgets of both that hold at once", [])
    compensations: list[str] = option("what follows the cut", ["none"])
    schedules: list[str] = option("schedules of fine-tuning; `none` evaluates without training")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparisons by name: the runs of a table and its figures; details are drawn for the first run."""

    runs: list[Grid] = option("grids of runs, in the order of the table")
    tables: list[str] = option("tables that are made", ["runs"], choices=tuple(TABLES))
    figures: list[str] = option("figures that are drawn", ["tradeoff", "finetuning"], choices=tuple(FIGURES))


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The configuration."""

    KEYED: ClassVar[tuple[str, ...]] = ("datasets", "networks", "criteria", "compensations", "comparisons")

    datasets: dict[str, Dataset] = option("Data sets by name.")
    networks: dict[str, Network] = option("Networks by name; the wildcard {network}.")
    criteria: dict[str, Criterion] = option("Criteria by name; the wildcard {criterion}.")
    compensations: dict[str, Compensation] = option(
        "Compensations by name; the wildcard {compensation}.", {"none": {"how": "none"}}
    )
    comparisons: dict[str, Comparison] = option("Comparisons by name.")
    targets: dict[str, list[str]] = option("Comparisons that each target of the workflow makes: snakemake TARGET.")
