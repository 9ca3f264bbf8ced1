"""A score table that is not its criterion's, such as a copy of another's, is refused before channels are chosen by it."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from scap.criterion.fusion import importance
from scap.criterion.settings import CriterionSettings
from scap.errors import DamagedFile
from scap.reading import channel_values, read_table

ANY = (-1e300, 1e300)
PRUNING = ("prune", "coupled_prune", "round_prune")  # rules that choose channels by scores


def scores_of_another(dag: Any, criteria: dict[str, dict[str, Any]]) -> str:
    """What is wrong with the score tables that a plan prunes by, and does not make again; else ""."""
    planned = set(dag.needrun_jobs())
    remade = {str(path) for job in planned for path in job.output}
    read = {
        str(path): job.wildcards.criterion
        for job in planned
        if job.rule.name in PRUNING
        for path in job.input
        if path.endswith("/scores.csv")
    }
    for path in sorted(read.keys() - remade):
        own = Path(path).parent.name  # of a round's scores the folder of the round
        try:
            if os.path.isfile(path):
                check_scores(path, criteria[own if own in criteria else read[path]])
        except DamagedFile as error:
            return f"{path}: {error.problem}; make it again: snakemake --cores all --force {path}"
    return ""


def check_scores(path: str, criterion: dict[str, Any]) -> None:
    """DamagedFile where the scores of a table are not what the criterion makes of the terms beside them."""
    settings = CriterionSettings(**{key: part for key, part in criterion.items() if key not in ("autoencoder", "calibration")})
    table = read_table(path, ["layer"], ["channel", *settings.terms, "score"])
    values = {column: channel_values(table, column, ANY, source=path) for column in (*settings.terms, "score")}
    for layer, scores in values["score"].items():
        expected = importance({term: values[term][layer] for term in settings.terms}, settings)
        if not np.allclose(expected, scores, rtol=0, atol=1e-6):
            problem = f"the scores of layer {layer} are not what this criterion makes of its terms: another's table, or edited"
            raise DamagedFile(path, problem)
