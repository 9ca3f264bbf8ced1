"""Settings that an entry of the configuration gives itself and that nothing reads: one message a mistake.

What it has from the entry that it is `like` is carried along and may be idle: `scap` with `kind: linear` keeps its epochs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from scap.criterion.terms import needs
from workflow.yaml_files import ConfigurationError

Section = dict[str, Any]


class Idle(NamedTuple):
    """Keys of an entry, when nothing reads them, and what would."""

    keys: tuple[str, ...]
    when: Callable[[Section], bool]
    remedy: str


def _without(need: str) -> Callable[[Section], bool]:
    """Whether no term of a criterion needs this."""
    return lambda criterion: not any(need in needs(term) for term in criterion["terms"])


AUTOENCODERS = (
    Idle(
        ("activation", "loss", "start", "epochs", "tolerance", "seed"), lambda it: it["kind"] == "linear", "'kind: nonlinear'"
    ),
    Idle(("seed",), lambda it: it["start"] == "principal", "'start: random'"),
)
CRITERIA = (
    Idle(("autoencoder",), _without("autoencoder"), "the term fidelity"),
    Idle(("seed",), _without("seed"), "the term random"),
)
COMPENSATIONS = (
    Idle(("images", "ridge"), lambda it: it["how"] == "none", "another 'how'"),
    Idle(("ridge",), lambda it: it["how"] == "batch-norm", "'how: channelwise' or 'how: full'"),
)
TRAININGS = (Idle(("temperature",), lambda it: not it["distillation"], "'distillation' above 0"),)
DATASETS = (Idle(("root", "download"), lambda it: it["source"] == "digits", "another 'source'"),)


def check_idle(written: Section, config: Section) -> None:
    """Raise ConfigurationError for the first setting that nothing reads.

    `written` is the configuration as it stands in the files, `config` the same with variants spelt out and defaults.
    """
    for path, own, entry, known in _entries(written, config):
        for keys, when, remedy in known:
            found = next((key for key in keys if key in own), None)
            if found and when(entry):
                problem = f"is read by nothing here; it needs {remedy}, or leave it out"
                raise ConfigurationError(f"config: {path}.{found}: {problem}")


def _entries(written: Section, config: Section) -> Iterator[tuple[str, Section, Section, tuple[Idle, ...]]]:
    """Path, what an entry gives itself, the whole entry, and what may be idle in it."""
    for section, known in (("datasets", DATASETS), ("criteria", CRITERIA), ("compensations", COMPENSATIONS)):
        for name, own in written.get(section, {}).items():
            yield f"{section}.{name}", own, config[section][name], known
    for name, own in written["criteria"].items():
        yield f"criteria.{name}.autoencoder", own.get("autoencoder", {}), config["criteria"][name]["autoencoder"], AUTOENCODERS
    for name, own in written["networks"].items():
        whole = config["networks"][name]
        if own.get("baseline"):
            yield f"networks.{name}.baseline", own["baseline"], whole["baseline"], TRAININGS
        for schedule, given in (own.get("finetuning") or {}).items():
            yield f"networks.{name}.finetuning.{schedule}", given, whole["finetuning"][schedule], TRAININGS
