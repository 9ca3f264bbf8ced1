# Only what is missing is an output: Snakemake deletes the outputs of a rule before it runs it, and these may be a user's files.
for name, entry in config["datasets"].items():
    missing = missing_files(entry["source"], entry.get("root", ""))
    if missing and entry["download"]:

        rule:
            name:
                f"download_{name}"
            output:
                missing,
            log:
                log_of(f"download/{name}"),
            benchmark:
                benchmark_of(f"download/{name}")
            threads: 1
            resources:
                runtime=more(60),
                mem_mb=more(1000),
            params:
                cfg=lambda _, entry=entry: {"source": entry["source"], "root": entry["root"]},
            script:
                "../scripts/download.py"


rule data:
    """One file per data set: uint8 images and labels, training and test."""
    input:
        sources=sources,
    output:
        "results/data/{dataset}.safetensors",
    log:
        log_of("results/data/{dataset}"),
    benchmark:
        benchmark_of("results/data/{dataset}")
    threads: 1
    resources:
        runtime=more(10),
        mem_mb=more(4000),
    params:
        cfg=lambda wildcards: section("datasets", wildcards.dataset, without=("download",)),
        code=code("data.py"),
    script:
        "../scripts/data.py"


rule checkpoint:
    """The network to be pruned, where someone else trained it."""
    input:
        checkpoint=checkpoint_file,
        data=dataset,
    output:
        f"{NETWORK}/baseline.safetensors",
    log:
        log_of(f"{NETWORK}/checkpoint"),
    benchmark:
        benchmark_of(f"{NETWORK}/checkpoint")
    wildcard_constraints:
        network=named(name for name, entry in config["networks"].items() if "weights" in entry),
    threads: 1
    resources:
        runtime=more(10),
        mem_mb=more(4000),
    params:
        cfg=lambda wildcards: {"architecture": architecture(wildcards.network)},
        code=code("checkpoint.py"),
    script:
        "../scripts/checkpoint.py"


rule baseline:
    """The network to be pruned, trained from scratch; resumes from its last epoch."""
    input:
        data=dataset,
    output:
        model=f"{NETWORK}/baseline.safetensors",
        history=f"{NETWORK}/baseline.history.csv",
    log:
        log_of(f"{NETWORK}/baseline"),
    benchmark:
        benchmark_of(f"{NETWORK}/baseline")
    wildcard_constraints:
        network=named(name for name, entry in config["networks"].items() if "baseline" in entry),
    threads: workflow.resource_settings.cores or 1
    resources:
        runtime=more(600),
        mem_mb=more(6000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {
            "architecture": architecture(wildcards.network),
            "training": config["networks"][wildcards.network]["baseline"],
        },
        code=code("baseline.py"),
    script:
        "../scripts/baseline.py"


rule evaluate_baseline:
    """Test accuracy, MACs and parameters of the baseline."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        data=dataset,
    output:
        f"{NETWORK}/baseline.json",
    log:
        log_of(f"{NETWORK}/evaluate_baseline"),
    benchmark:
        benchmark_of(f"{NETWORK}/evaluate_baseline")
    threads: 2
    resources:
        runtime=more(30),
        mem_mb=more(4000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {"architecture": architecture(wildcards.network)},
        code=code("evaluate.py"),
    script:
        "../scripts/evaluate.py"
