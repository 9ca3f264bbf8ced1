# Only what is missing is an output: Snakemake deletes the outputs of a rule before it runs it, and these may be a user's files.
downloaded = set()  # two data sets may have the same files
for name, entry in config["datasets"].items():
    missing = [path for path in missing_files(entry["source"], entry.get("root", "")) if path not in downloaded]
    if missing and entry["download"]:
        downloaded.update(missing)

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


folders = [name for name, entry in config["datasets"].items() if entry["source"] == FOLDER]


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
    wildcard_constraints:
        dataset=named(set(config["datasets"]) - set(folders)),
    threads: 1
    resources:
        runtime=more(10),
        mem_mb=more(4000),
    params:
        cfg=lambda wildcards: section("datasets", wildcards.dataset, without=("download",)),
        code=code("data.py"),
    script:
        "../scripts/data.py"


rule image_list:
    """The list of a folder's images, which are decoded when they are used."""
    input:
        surveyed,
    output:
        "results/data/{dataset}.safetensors",
    log:
        log_of("results/data/{dataset}"),
    benchmark:
        benchmark_of("results/data/{dataset}")
    wildcard_constraints:
        dataset=named(folders),
    threads: 1
    resources:
        runtime=more(60),
        mem_mb=more(4000),
    params:
        cfg=folder_list,
        code=code("image_list.py"),
    script:
        "../scripts/image_list.py"


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
        network=networks_from("checkpoint"),
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
        network=networks_from("training"),
    threads: training_cores
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


rule trained_weights:
    """A network with trained weights, and a fresh head where its classes are others: what a training starts from."""
    input:
        checkpoint=trained_weights,
        data=dataset,
    output:
        f"{NETWORK}/weights.safetensors",
    log:
        log_of(f"{NETWORK}/weights"),
    benchmark:
        benchmark_of(f"{NETWORK}/weights")
    wildcard_constraints:
        network=networks_from("weights, then training"),
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(6000),
    params:
        cfg=lambda wildcards: {"architecture": architecture(wildcards.network), "fresh_head": True},
        code=code("trained_weights.py"),
    script:
        "../scripts/trained_weights.py"


use rule trained_weights as named_weights with:
    output:
        f"{NETWORK}/baseline.safetensors",
    wildcard_constraints:
        network=networks_from("named weights"),
    params:
        cfg=lambda wildcards: {"architecture": architecture(wildcards.network), "fresh_head": False},
        code=code("trained_weights.py"),


rule baseline_from_weights:
    """The network to be pruned, trained from given weights; resumes from its last epoch."""
    input:
        weights=f"{NETWORK}/weights.safetensors",
        data=dataset,
    output:
        model=f"{NETWORK}/baseline.safetensors",
        history=f"{NETWORK}/baseline.history.csv",
    log:
        log_of(f"{NETWORK}/baseline"),
    benchmark:
        benchmark_of(f"{NETWORK}/baseline")
    wildcard_constraints:
        network=networks_from("weights, then training"),
    threads: training_cores
    resources:
        runtime=more(600),
        mem_mb=more(6000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {
            "architecture": architecture(wildcards.network),
            "training": config["networks"][wildcards.network]["baseline"],
        },
        code=code("baseline_from_weights.py"),
    script:
        "../scripts/baseline_from_weights.py"


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
