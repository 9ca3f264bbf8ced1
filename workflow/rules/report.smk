rule runs_table:
    """One row a run, always the same columns; figures, notebooks and documents read it."""
    input:
        metrics=of_runs(f"{RUN}/metrics.json"),
        baselines=of_runs(f"{NETWORK}/baseline.json"),
        histories=of_runs(f"{RUN}/history.csv", trained=True),
    output:
        report(
            "results/tables/{comparison}.csv",
            caption="../report/caption.rst",
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
        cfg=lambda wildcards: {"caption": TABLES["runs"].caption, "runs": lineage.runs(wildcards.comparison)},
        code=code("runs_table.py"),
    script:
        "../scripts/runs_table.py"


rule sensitivity_table:
    """One row a criterion and seed, without training: size, and agreement of the ranking with the first one and with L1."""
    input:
        baselines=of_scored(f"{NETWORK}/baseline.json"),
        scores=of_scored(f"{CRITERION}/scores.csv"),
    output:
        report(
            "results/tables/{comparison}.sensitivity.csv",
            caption="../report/caption.rst",
            category="{comparison}",
            labels={"result": "table of sensitivity"},
        ),
    log:
        log_of("results/tables/{comparison}.sensitivity"),
    benchmark:
        benchmark_of("results/tables/{comparison}.sensitivity")
    threads: 1
    resources:
        runtime=more(30),
        mem_mb=more(2000),
    params:
        cfg=lambda wildcards: {"caption": TABLES["sensitivity"].caption, **sensitivity_settings(wildcards)},
        code=code("sensitivity_table.py"),
    script:
        "../scripts/sensitivity_table.py"


rule method_table:
    """One channel through the method: its field, spectrum and reconstruction."""
    input:
        activations=method_file(f"{CALIBRATION}/activations.safetensors"),
        autoencoder=method_file(f"{AUTOENCODER}/{{layer}}.safetensors"),
        fidelity=method_file(f"{AUTOENCODER}/{{layer}}.csv"),
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
        cfg=method_settings,
        code=code("method_table.py"),
    script:
        "../scripts/method_table.py"


rule figure:
    """A figure, drawn from tables alone."""
    input:
        tables=drawn_tables,
    output:
        png=report(
            "results/figures/{comparison}/{figure}.png",
            caption="../report/caption.rst",
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
        code=lambda wildcards: code("figure.py", FIGURES[wildcards.figure].function),
    script:
        "../scripts/figure.py"
