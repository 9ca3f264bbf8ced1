rule prune:
    """The smaller network: the channels that a plan keeps, and the next layers told what went."""
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
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(4000),
    params:
        cfg=pruning,
        code=code("prune.py"),
    script:
        "../scripts/prune.py"


rule finetune:
    """The pruned network, trained again; resumes from its last epoch."""
    input:
        pruned=f"{PRUNED}/pruned.safetensors",
        data=dataset,
        teacher=teacher,
    output:
        model=f"{RUN}/finetuned.safetensors",
        history=f"{RUN}/history.csv",
    log:
        log_of(f"{RUN}/finetune"),
    benchmark:
        benchmark_of(f"{RUN}/finetune")
    threads: 1
    resources:
        runtime=more(600),
        mem_mb=more(6000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {"architecture": architecture(wildcards.network), "training": finetuning(wildcards)},
        code=code("finetune.py"),
    script:
        "../scripts/finetune.py"


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
