"""A tiny experiment: every rule of the workflow, in a minute on two cores; and what it makes."""

CONFIG = "config/config.yaml"
NETWORK = "results/tiny/seed0"
FEW = f"{NETWORK}/calibrations/images-32"  # what is recorded on its calibration images
LAYERS = {"conv1_1", "conv2_2", "conv5_3"}
CRITERIA = {"scap", "scap-second", "l1", "conditional"}
FIRST, SECOND = "bottleneck-2+epochs-3", "bottleneck-3+epochs-3"  # the autoencoders of scap and scap-second
POINTS = (  # criterion, widths, size, compensation of the pruned networks
    "scap/own/threshold-0.5/none",
    "scap-second/own/threshold-0.5/none",
    "l1/scap/threshold-0.5/none",
    "l1/uniform-scap/threshold-0.5/none",
    "conditional/own/macs-0.8/none",
    "conditional/own/macs-0.8/full",
)
SCHEDULES = dict(zip(POINTS, ["short"] * 4 + ["none"] * 2, strict=True))
FIGURES = {"tradeoff", "finetuning", "method", "scores", "channels"}
NOTHING = "Nothing to be done"
TINY = """
datasets:
  digits: {source: digits}
networks:
  tiny:
    architecture: vgg16
    width: 0.0625
    dataset: digits
    layers: [conv1_1, conv2_2, conv5_3]
    train_images: 512
    holdout: 64
    baseline: {epochs: 8, batch_size: 64, learning_rate: 0.05, ema: 0.9, crop: 2}
    finetuning:
      short: {epochs: 1, batch_size: 64, learning_rate: 0.05}
criteria:
  scap: {terms: {fidelity: 0.75, l1: 0.25}, autoencoder: {bottleneck: 2, epochs: 3}, calibration: {images: 32}}
  scap-second: {like: scap, terms: {fidelity: 1, l1: 1}, fusion: product, autoencoder: {bottleneck: 3}}
  l1: {terms: {l1: 1}}
  conditional: {terms: {conditional: 1}, calibration: {images: 32}}
compensations:
  none: {how: none}
  full: {how: full, images: 64}
comparisons:
  quick:
    runs:
      - &quick {networks: [tiny], seeds: [0], criteria: [scap, scap-second], thresholds: [0.5], schedules: [short]}
      - {<<: *quick, criteria: [l1], widths: [scap, uniform-scap]}
      - {<<: *quick, criteria: [conditional], thresholds: [], macs: [0.8], compensations: [none, full], schedules: [none]}
    figures: [tradeoff, finetuning, method, scores, channels]
  sizes:
    runs:
      - {<<: *quick, criteria: [scap-second, scap], schedules: [none]}
      - {<<: *quick, criteria: [l1], widths: [uniform-scap], schedules: [none]}
    tables: [sensitivity]
    figures: [sensitivity]
targets:
  all: [quick, sizes]
"""


def run_folder(point: str, schedule: str | None = None) -> str:
    """Where a point's files lie, or those of one of its schedules."""
    criterion, widths, size, compensation = point.split("/")
    folder = f"{NETWORK}/{criterion}/widths-{widths}/{size}/compensation-{compensation}"
    return f"{folder}/{schedule}" if schedule else folder


def points_of(*criteria: str) -> set[str]:
    """The points whose channels or widths one of these criteria decides."""
    return {point for point in POINTS if {point.split("/")[0], point.split("/")[1].removeprefix("uniform-")} & {*criteria}}


def from_pruning(points: set[str], figures: set[str]) -> dict[str, set[str]]:
    """The jobs from prune to the table and these figures of the runs."""
    runs = {f"{point}/{SCHEDULES[point]}" for point in points}
    trained = {run for run in runs if not run.endswith("/none")}
    jobs = {"prune": points, "finetune": trained, "evaluate": runs}
    return {rule: names for rule, names in jobs.items() if names} | {
        "runs_table": {"quick"},
        "figure": {f"quick/{figure}" for figure in figures},
    }
