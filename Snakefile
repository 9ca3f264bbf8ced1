# SCAP: Spectral Complex Autoencoder Pruning (arXiv:2601.09352), step by step.
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"  # configuration, names, helpers
include: "workflow/rules/train.smk"  # data, baseline
include: "workflow/rules/analyse.smk"  # activations, spectrum, autoencoder, scores
include: "workflow/rules/prune.smk"  # prune, finetune, evaluate
include: "workflow/rules/report.smk"  # tables, studies, figures


rule all:
    input:
        lineage.target("all"),


for name in set(config["targets"]) - {"all"}:

    rule:
        name:
            name
        input:
            lineage.target(name),


onstart:
    wait_for_earlier_jobs()


onsuccess:
    export_records()
    remove_leftovers()


onerror:
    export_records()
