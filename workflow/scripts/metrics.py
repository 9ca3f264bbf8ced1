"""What evaluate measured, read again. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from scap.errors import DamagedFile
from scap.reading import COUNT, PERCENT, read_json


def read_metrics(path: str, run: Mapping[str, object], models: tuple[str, ...]) -> dict[str, Any]:
    """The metrics of these models; DamagedFile where they are out of range, or of another run than that of these wildcards."""
    sizes = {f"{model}.{key}": COUNT for model in models for key in ("macs", "params")}
    shares = {f"{model}.top1": PERCENT for model in models}
    metrics = read_json(path, limits=sizes | shares, whole=list(sizes))
    held_out = {f"{model}.holdout_top1": PERCENT for model in models if "holdout_top1" in metrics[model]}
    read_json(path, limits=held_out, text=[key for key in ("device", "torch") if key in metrics])
    if metrics.get("run") != (wanted := {key: str(value) for key, value in run.items()}):
        raise DamagedFile(path, f"is of the run {metrics.get('run')}, not of {wanted}")
    return metrics
