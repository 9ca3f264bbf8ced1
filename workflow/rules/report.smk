rule table:
    """One row a run, always the same columns; figures, notebooks and the README read it."""
    input:
        metrics=of_runs(f"{RUN}/metrics.json"),
        baselines=of_runs(f"{NETWORK}/baseline.json"),
        histories=of_runs(f"{RUN}/history.csv"),
        library=library("runs_table.py"),
    output:
        report(
            "results/tables/{comparison}.csv",
            caption="../report/table.rst",
            category="{comparison}",
            labels={"result": "table of runs"},
        ),
    log:
        log_of("results/tables/{comparison}"),
    benchmark:
        benchmark_of("results/tables/{comparison}")
    threads: 1
    resources:
        runtime=more(5),
        mem_mb=more(1000),
    params:
        cfg=lambda wildcards: runs(wildcards.comparison),
    script:
        "../scripts/runs_table.py"


rule study:
    """One row a reading of the criterion and seed: size at the threshold, agreement of the ranking with the first one and with L1."""
    input:
        baselines=of_study(f"{NETWORK}/baseline.json"),
        scores=of_study(f"{CRITERION}/scores.csv"),
        library=library("study.py"),
    output:
        report(
            "results/tables/{study}.csv",
            caption="../report/study.rst",
            category="{study}",
            labels={"result": "table of readings"},
        ),
    log:
        log_of("results/tables/{study}"),
    benchmark:
        benchmark_of("results/tables/{study}")
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(2000),
    params:
        cfg=study_settings,
    script:
        "../scripts/study.py"


rule study_figure:
    """The readings of a study side by side."""
    input:
        table="results/tables/{study}.csv",
        library=library("study_figure.py"),
    output:
        png=report(
            "results/figures/{study}/study.png",
            caption="../report/study.rst",
            category="{study}",
            labels={"result": "figure of readings"},
        ),
        pdf="results/figures/{study}/study.pdf",
    log:
        log_of("results/figures/{study}/study"),
    benchmark:
        benchmark_of("results/figures/{study}/study")
    threads: 1
    resources:
        runtime=more(5),
        mem_mb=more(1000),
    script:
        "../scripts/study_figure.py"


rule method_table:
    """One channel through the method: its field, spectrum and reconstruction."""
    input:
        activations=method_file(f"{CALIBRATION}/activations.safetensors"),
        autoencoder=method_file(f"{AUTOENCODER}/{{layer}}.safetensors"),
        fidelity=method_file(f"{AUTOENCODER}/{{layer}}.csv"),
        library=library("method_table.py"),
    output:
        "results/tables/{comparison}.method.csv",
    log:
        log_of("results/tables/{comparison}.method"),
    benchmark:
        benchmark_of("results/tables/{comparison}.method")
    threads: 1
    resources:
        runtime=more(5),
        mem_mb=more(2000),
    params:
        cfg=lambda wildcards: method_settings(wildcards.comparison),
    script:
        "../scripts/method_table.py"


rule figure:
    """A figure, drawn from tables alone."""
    input:
        tables=figure_tables,
        library=library("figure.py"),
    output:
        png=report(
            "results/figures/{comparison}/{figure}.png",
            caption="../report/figure.rst",
            category="{comparison}",
            labels={"result": "figure: {figure}"},
        ),
        pdf="results/figures/{comparison}/{figure}.pdf",
    log:
        log_of("results/figures/{comparison}/{figure}"),
    benchmark:
        benchmark_of("results/figures/{comparison}/{figure}")
    threads: 1
    resources:
        runtime=more(5),
        mem_mb=more(1000),
    params:
        cfg=figure_settings,
    script:
        "../scripts/figure.py"
