rule prune:
    """The smaller network: channels whose score is at least the threshold."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        scores=f"{CRITERION}/scores.csv",
        width_scores=width_scores,
        library=library("prune.py"),
    output:
        model=f"{PRUNED}/pruned.safetensors",
        channels=f"{PRUNED}/channels.csv",
    log:
        log_of(f"{PRUNED}/prune"),
    benchmark:
        benchmark_of(f"{PRUNED}/prune")
    threads: 1
    resources:
        runtime=more(10),
        mem_mb=more(3000),
    params:
        cfg=lambda wildcards: {
            "layers": layers(wildcards.network),
            "threshold": float(wildcards.threshold),
            "multiple": config["networks"][wildcards.network]["multiple"],
            "uniform": config["criteria"][wildcards.criterion]["uniform"],
        },
    script:
        "../scripts/prune.py"


rule finetune:
    """The pruned network, trained again; resumes from its last epoch."""
    input:
        pruned=f"{PRUNED}/pruned.safetensors",
        data=dataset,
        teacher=teacher,
        library=library("finetune.py"),
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
    script:
        "../scripts/finetune.py"


rule evaluate:
    """Test accuracy before and after fine-tuning, MACs and parameters."""
    input:
        pruned=f"{PRUNED}/pruned.safetensors",
        finetuned=f"{RUN}/finetuned.safetensors",
        data=dataset,
        library=library("evaluate.py"),
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
    script:
        "../scripts/evaluate.py"
