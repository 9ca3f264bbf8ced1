rule activations:
    """Inputs X and outputs Y of every analysed convolution on the calibration images, in one pass."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        data=dataset,
    output:
        f"{CALIBRATION}/activations.safetensors",
    log:
        log_of(f"{CALIBRATION}/activations"),
    benchmark:
        benchmark_of(f"{CALIBRATION}/activations")
    threads: 2
    resources:
        runtime=more(30),
        mem_mb=more(4000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {
            "architecture": architecture(wildcards.network),
            "layers": lineage.layers(wildcards.network),
            "calibration": lineage.calibrations[wildcards.calibration],
        },
        code=code("activations.py"),
    script:
        "../scripts/activations.py"


rule spectrum:
    """The half-plane spectra of one layer's X and Y."""
    input:
        activations=f"{CALIBRATION}/activations.safetensors",
    output:
        f"{CALIBRATION}/spectra/{{layer}}.safetensors",
    log:
        log_of(f"{CALIBRATION}/spectra/{{layer}}"),
    benchmark:
        benchmark_of(f"{CALIBRATION}/spectra/{{layer}}")
    threads: 1
    resources:
        runtime=more(10),
        mem_mb=more(2000),
    params:
        cfg=lambda wildcards: {"dtype": lineage.calibrations[wildcards.calibration]["dtype"]},
        code=code("spectrum.py"),
    script:
        "../scripts/spectrum.py"


rule autoencoder:
    """One layer's autoencoder, and the fidelity with which it reconstructs each output channel."""
    input:
        spectra=spectra,
    output:
        weights=f"{AUTOENCODER}/{{layer}}.safetensors",
        fidelity=f"{AUTOENCODER}/{{layer}}.csv",
    log:
        log_of(f"{AUTOENCODER}/{{layer}}"),
    benchmark:
        benchmark_of(f"{AUTOENCODER}/{{layer}}")
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(4000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: lineage.autoencoders[wildcards.autoencoder],
        code=code("autoencoder.py"),
    script:
        "../scripts/autoencoder.py"


rule term:
    """One term of the score that is measured on calibration images, for every channel."""
    input:
        unpack(term_inputs),
    output:
        f"{CALIBRATION}/terms/{{term}}.csv",
    log:
        log_of(f"{CALIBRATION}/terms/{{term}}"),
    benchmark:
        benchmark_of(f"{CALIBRATION}/terms/{{term}}")
    threads: 2
    resources:
        runtime=more(60),
        mem_mb=more(6000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: {
            "architecture": architecture(wildcards.network),
            "layers": lineage.layers(wildcards.network),
            "calibration": lineage.calibrations[wildcards.calibration],
        },
        code=lambda wildcards: code("term.py", *term_code([wildcards.term])),
    script:
        "../scripts/term.py"


rule scores:
    """Importance of every channel: the terms of the criterion, fused."""
    input:
        unpack(score_inputs),
    output:
        f"{CRITERION}/scores.csv",
    log:
        log_of(f"{CRITERION}/scores"),
    benchmark:
        benchmark_of(f"{CRITERION}/scores")
    wildcard_constraints:
        network=named(name for name in config["networks"] if not lineage.coupled(name)),
    threads: 1
    resources:
        runtime=more(5),
        mem_mb=more(1000),
    params:
        cfg=lambda wildcards: {
            "layers": lineage.layers(wildcards.network),
            "criterion": section("criteria", wildcards.criterion, without=("autoencoder", "calibration", "together")),
        },
        code=lambda wildcards: code("scores.py", *term_code(scored_here(wildcards.criterion))),
    script:
        "../scripts/scores.py"


rule coupled_scores:
    """The same of coupled layers, in one job: which ones go together is known when the network has been traced."""
    input:
        network=f"{NETWORK}/baseline.safetensors",
        data=dataset,
    output:
        f"{CRITERION}/scores.csv",
    log:
        log_of(f"{CRITERION}/coupled_scores"),
    benchmark:
        benchmark_of(f"{CRITERION}/coupled_scores")
    wildcard_constraints:
        network=named(filter(lineage.coupled, config["networks"])),
    threads: 2
    resources:
        runtime=more(120),
        mem_mb=more(8000),
        gpu=gpus,
    params:
        cfg=lambda wildcards: network_scores(wildcards) | {"pruned": False},
        code=criterion_code,
    script:
        "../scripts/network_scores.py"
