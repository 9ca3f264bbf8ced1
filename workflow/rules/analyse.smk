rule activations:
    """Inputs X and outputs Y of every analysed convolution on the calibration images, in one pass."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        data=dataset,
        library=library("activations.py"),
    output:
        f"{CALIBRATION}/activations.safetensors",
        f"{CALIBRATION}/activations.csv",
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
            "layers": layers(wildcards.network),
            "calibration": section("calibrations", wildcards.calibration),
        },
    script:
        "../scripts/activations.py"


rule spectrum:
    """The half-plane spectra of one layer's X and Y."""
    input:
        activations=f"{CALIBRATION}/activations.safetensors",
        library=library("spectrum.py"),
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
        cfg=lambda wildcards: {"dtype": config["calibrations"][wildcards.calibration]["dtype"]},
    script:
        "../scripts/spectrum.py"


rule autoencoder:
    """One layer's autoencoder, and the fidelity with which it reconstructs each output channel."""
    input:
        spectra=spectra,
        library=library("autoencoder.py"),
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
        cfg=lambda wildcards: section("autoencoders", wildcards.autoencoder, without=("calibration",)),
    script:
        "../scripts/autoencoder.py"


rule scores:
    """Importance of every channel: fidelity and magnitude, fused."""
    input:
        baseline=f"{NETWORK}/baseline.safetensors",
        fidelities=lambda wildcards: autoencoders(wildcards.network, wildcards.seed, wildcards.criterion, "csv"),
        activations=strengths,
        library=library("scores.py"),
    output:
        f"{CRITERION}/scores.csv",
    log:
        log_of(f"{CRITERION}/scores"),
    benchmark:
        benchmark_of(f"{CRITERION}/scores")
    threads: 1
    resources:
        runtime=more(5),
        mem_mb=more(1000),
    params:
        cfg=lambda wildcards: {
            "layers": layers(wildcards.network),
            "criterion": section("criteria", wildcards.criterion, without=("autoencoder", "widths_of", "uniform")),
        },
    script:
        "../scripts/scores.py"
