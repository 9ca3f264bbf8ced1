rule prune:
    """The smaller network: the channels that a plan keeps, and the next layers compensated."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        scores=f"{CRITERION}/scores.csv",
        width_scores=width_scores,
        data=compensation_data,
    output:
        model=f"{PRUNED}/pruned.safetensors",
        channels=f"{PRUNED}/channels.csv",
        compensation=f"{PRUNED}/compensation.csv",
    log:
        log_of(f"{PRUNED}/prune"),
    benchmark:
        benchmark_of(f"{PRUNED}/prune")
    wildcard_constraints:
        network=named(name for name in config["networks"] if not lineage.coupled(name)),
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(4000),
    params:
        cfg=pruning,
        code=code("prune.py"),
    script:
        "../scripts/prune.py"


rule coupled_prune:
    """The same of coupled layers."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        scores=f"{CRITERION}/scores.csv",
        width_scores=width_scores,
        data=compensation_data,
    output:
        model=f"{PRUNED}/pruned.safetensors",
        channels=f"{PRUNED}/channels.csv",
        compensation=f"{PRUNED}/compensation.csv",
    log:
        log_of(f"{PRUNED}/coupled_prune"),
    benchmark:
        benchmark_of(f"{PRUNED}/coupled_prune")
    wildcard_constraints:
        network=named(filter(lineage.coupled, config["networks"])),
    threads: 1
    resources:
        runtime=more(60),
        mem_mb=more(6000),
    params:
        cfg=network_pruning,
        code=code("network_prune.py"),
    script:
        "../scripts/network_prune.py"


rule round_scores:
    """The scores of what the round before left, in one job."""
    input:
        network=round_before,
        data=dataset,
    output:
        f"{ROUND}/scores.csv",
    log:
        log_of(f"{ROUND}/scores"),
    benchmark:
        benchmark_of(f"{ROUND}/scores")
    threads: 2
    resources:
        runtime=more(120),
        mem_mb=more(8000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: network_scores(wildcards) | {"pruned": True},
        code=criterion_code,
    script:
        "../scripts/network_scores.py"


rule round_prune:
    """One round's cut of what the round before left: its part of the budget."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        network=round_before,
        scores=scores_of_round,
        data=compensation_data,
    output:
        model=f"{ROUND}/pruned.safetensors",
        channels=f"{ROUND}/channels.csv",
        compensation=f"{ROUND}/compensation.csv",
    log:
        log_of(f"{ROUND}/prune"),
    benchmark:
        benchmark_of(f"{ROUND}/prune")
    threads: 1
    resources:
        runtime=more(60),
        mem_mb=more(6000),
    params:
        cfg=lambda wildcards: network_pruning(wildcards, int(wildcards.round), rounds(wildcards)),
        code=code("network_prune.py"),
    script:
        "../scripts/network_prune.py"


rule finetune:
    """The pruned network, trained again; resumes from its last epoch."""
    input:
        pruned=last_cut,
        data=dataset,
        teacher=teacher,
        earlier=earlier_histories,
    output:
        model=f"{RUN}/finetuned.safetensors",
        history=f"{RUN}/history.csv",
    log:
        log_of(f"{RUN}/finetune"),
    benchmark:
        benchmark_of(f"{RUN}/finetune")
    threads: processes
    resources:
        runtime=more(600),
        mem_mb=more(6000),
        gpu=every_gpu,
    params:
        cfg=training,
        code=code("finetune.py", "workflow.scripts.several"),
    script:
        "../scripts/finetune.py"


use rule finetune as round_finetune with:
    input:
        pruned=f"{ROUND}/pruned.safetensors",
        data=dataset,
        teacher=teacher,
    output:
        model=f"{ROUND}/finetuned.safetensors",
        history=f"{ROUND}/history.csv",
    log:
        log_of(f"{ROUND}/finetune"),
    benchmark:
        benchmark_of(f"{ROUND}/finetune")


rule evaluate:
    """Test accuracy before and after fine-tuning, MACs and parameters."""
    input:
        unpack(evaluated),
        data=dataset,
    output:
        f"{RUN}/metrics.json",
    log:
        log_of(f"{RUN}/evaluate"),
    benchmark:
        benchmark_of(f"{RUN}/evaluate")
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(4000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {"architecture": architecture(wildcards.network)},
        code=code("evaluate.py"),
    script:
        "../scripts/evaluate.py"
