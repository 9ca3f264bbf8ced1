"""Compare readings of the criterion on the same baselines: sizes at the threshold, agreement of the rankings."""

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
from scap.pruning.surgery import prune_network


def rows(baseline: str, tables: dict[str, pd.DataFrame], cfg: dict, seed: int) -> list[dict]:
    """One row a criterion; `tables` by name. Only sizes are counted, so the weights do not matter."""
    built = read_metrics(baseline, {"network": cfg["network"], "seed": seed}, ("baseline",))["network"]
    network, example = build_network(built["architecture"], **built["arguments"]), torch.zeros(built["example_shape"])
    before = count_operations(network, example)
    found = []
    for name, entry in cfg["criteria"].items():
        scores, widths_of = tables[name], tables.get(entry.get("widths_of"))
        plan = make_plan(network, example, scores, widths_of, entry["uniform"], cfg)
        after = count_operations(prune_network(network, plan, example), example)
        if not found:
            first, first_plan = scores, plan
        removed = {f"{key}_removed": 1 - after[key] / before[key] for key in ("macs", "params")}
        found.append(
            {
                **{"network": cfg["network"], "seed": seed, "criterion": name, "threshold": cfg["threshold"]},
                **{"macs": after["macs"], "params": after["params"], **removed},
                "distance_to_published": distance_to_published(removed),
                "median_fidelity": scores["fidelity"].median(),
                "rank_correlation_first": rank_correlation(scores, first),
                "rank_correlation_l1": rank_correlation(scores, first, "magnitude"),
                "kept_in_common_first": kept_in_common(plan, first_plan),
                **entry,
            }
        )
    return found


if __name__ == "__main__":
    with job(snakemake):
        cfg, inputs = snakemake.params.cfg, snakemake.input
        scores = iter(inputs.scores)
        table = []
        for seed, baseline in zip(cfg["seeds"], inputs.baselines, strict=True):
            tables = {name: read_scores(next(scores)) for name in cfg["scored"]}
            table += rows(baseline, tables, cfg, seed)
        write_table(snakemake.output[0], table)
