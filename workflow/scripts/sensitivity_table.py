"""Compare criteria on the same baselines, without training: sizes at a threshold, agreement of the rankings."""

import pandas as pd
import torch
from channels import read_scores
from job import job
from metrics import read_metrics
from plans import make_plan
from table import write_table

from scap.criterion.sensitivity import distance_to_published, kept_in_common, rank_correlation
from scap.models.build import build_network
from scap.pruning.counting import count_operations
from scap.pruning.surgery import cut_network


def spelt_out(criterion: dict) -> dict:
    """The settings of a criterion in one level: `autoencoder.bottleneck`, `terms.l1`, `criterion.seed`, ..."""
    flat = {}
    for key, value in criterion.items():
        prefix, parts = (key, value) if isinstance(value, dict) else ("criterion", {key: value})
        flat |= {f"{prefix}.{inner}": part for inner, part in parts.items()}
    return flat


def rows(baseline: str, runs: list[dict], tables: dict[str, pd.DataFrame], cfg: dict) -> list[dict]:
    """One row a run of one network and seed. Only sizes are counted, so the weights do not matter."""
    built = read_metrics(baseline, {key: runs[0][key] for key in ("network", "seed")}, ("baseline",))["network"]
    network, example = build_network(built["architecture"], **built["arguments"]), torch.zeros(built["example_shape"])
    before, found = count_operations(network, example), []
    for run in runs:
        scores, decide = tables[run["criterion"]], tables[cfg["widths"][f"{run['criterion']} {run['widths']}"]]
        kind, _, value = run["size"].partition("-")
        size = {"uniform": run["widths"].startswith("uniform"), kind: float(value), **cfg["networks"][run["network"]]}
        plan = make_plan(network, example, scores, None if decide is scores else decide, size)
        after = count_operations(cut_network(network, plan, example), example)
        if not found:
            first, first_plan = scores, plan
        removed = {f"{key}_removed": 1 - after[key] / before[key] for key in ("macs", "params")}
        found.append(
            {
                **{key: run[key] for key in ("network", "seed", "criterion", "widths", "size")},
                "threshold": float(value) if kind == "threshold" else float("nan"),
                **{"macs": after["macs"], "params": after["params"], **removed},
                "distance_to_published": distance_to_published(removed),
                "median_fidelity": scores["fidelity"].median() if "fidelity" in scores else float("nan"),
                "rank_correlation_first": rank_correlation(scores, first),
                "rank_correlation_l1": rank_correlation(scores, first, "l1"),
                "kept_in_common_first": kept_in_common(plan, first_plan),
                **spelt_out(cfg["criteria"][run["criterion"]]),
            }
        )
    return found


def make_table(baselines: list[str], scores: list[str], cfg: dict) -> list[dict]:
    """The rows of every network and seed."""
    paths: dict = {}
    for entry, path in zip(cfg["scored"], scores, strict=True):
        paths.setdefault((entry["network"], entry["seed"]), {})[entry["criterion"]] = path
    found = []
    for (network, seed), baseline in zip(paths, baselines, strict=True):
        tables = {name: read_scores(path) for name, path in paths[network, seed].items()}
        runs = [run for run in cfg["runs"] if (run["network"], run["seed"]) == (network, seed)]
        found += rows(baseline, runs, tables, cfg)
    return found


if __name__ == "__main__":
    with job(snakemake):
        inputs = snakemake.input
        table = make_table(list(inputs.baselines), list(inputs.scores), snakemake.params.cfg)
        write_table(snakemake.output[0], table)
