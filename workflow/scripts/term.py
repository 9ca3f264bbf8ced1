"""Measure one term of the score on the calibration images."""

from typing import Any

import pandas as pd
from dataset import calibration_images, open_dataset
from device import pick_device
from job import job
from networks import open_unpruned
from table import write_table

from scap.criterion.fusion import evaluate_term
from scap.criterion.spectra import open_activations


def measure(term: str, inputs: dict[str, str], cfg: dict, seed: int, output: str, device: str) -> None:
    layers, network = cfg["layers"], open_unpruned(inputs["baseline"], cfg["architecture"])[0].to(device)
    given: dict[str, Any] = {"network": network, "layers": layers}
    if "data" in inputs:
        dataset = open_dataset(inputs["data"], cfg["architecture"])
        given["images"], given["labels"] = calibration_images(dataset, cfg["calibration"]["images"], seed, device)

    def gather(need: str, layer: str) -> Any:
        return open_activations(inputs["activations"], layer)[1] if need == "outputs" else given[need]

    values = evaluate_term(term, layers, gather)
    tables = [pd.DataFrame({"layer": layer, "channel": range(len(values[layer])), term: values[layer]}) for layer in layers]
    write_table(output, pd.concat(tables))


if __name__ == "__main__":
    with job(snakemake):
        inputs = dict(snakemake.input.items())
        seed = int(snakemake.wildcards.seed)
        measure(snakemake.wildcards.term, inputs, snakemake.params.cfg, seed, snakemake.output[0], pick_device(snakemake))
