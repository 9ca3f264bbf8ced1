# SCAP: Spectral Complex Autoencoder Pruning (arXiv:2601.09352), step by step.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"  # configuration, names, helpers
include: "workflow/rules/train.smk"  # data, baseline
include: "workflow/rules/analyse.smk"  # activations, spectrum, autoencoder, scores
include: "workflow/rules/prune.smk"  # prune, finetune, evaluate
include: "workflow/rules/report.smk"  # tables, figures


rule all:
    input:
        target("all"),


rule token:
    input:
        target("token"),


rule paper:
    input:
        target("paper"),


rule ablations:
    input:
        target("ablations"),


onstart:
    wait_for_earlier_jobs()


onsuccess:
    export_records()
    remove_resume_files()


onerror:
    export_records()
