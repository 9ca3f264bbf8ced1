# SCAP: Spectral Complex Autoencoder Pruning (arXiv:2601.09352), step by step.
from snakemake.utils import min_version

from workflow.checksums import remember_checksums
from workflow.display import show_run
from workflow.trial_build import problem_of_networks
from workflow.plan_check import made_of_damaged, trained_again
from workflow.score_check import scores_of_another
from workflow.summary import closing, failures
from workflow.warm_jobs import keep_warm

min_version("9.27.1")
display = show_run(workflow)
keep_warm(workflow)


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"  # configuration, names, helpers
include: "workflow/rules/train.smk"  # data, baseline
include: "workflow/rules/analyse.smk"  # activations, spectrum, autoencoder, scores
include: "workflow/rules/prune.smk"  # prune, finetune, evaluate
include: "workflow/rules/report.smk"  # tables, figures


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
    dag = workflow.dag
    if problem := trained_again(dag) or made_of_damaged(dag) or scores_of_another(dag, config["criteria"]):
        refuse(problem)
    if problem := problem_of_networks(dag, config):
        refuse(problem)
    wait_for_earlier_jobs()
    remember_checksums()
    if workflow.local_exec:
        # Each look at the limit of jobs a second asks for another look, for ever: after many jobs that alone keeps a core busy.
        workflow.scheduler.job_rate_limiter = None


onsuccess:
    display.stop()
    export_records()
    remove_leftovers()
    print(closing(config, workflow.dag_settings.targets))


onerror:
    display.stop()
    export_records()
    print(failures(display))
