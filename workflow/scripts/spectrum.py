"""Transform one layer's activations into its half-plane spectra."""

import torch
from job import job

from scap.criterion.spectra import write_spectra

if __name__ == "__main__":
    with job(snakemake) as report:
        torch.set_num_threads(snakemake.threads)
        dtype = getattr(torch, snakemake.params.cfg["dtype"])
        layer = snakemake.wildcards.layer
        write_spectra(snakemake.input.activations, layer, snakemake.output[0], dtype=dtype, report=report)
