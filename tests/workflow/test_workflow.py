"""The workflow on a tiny experiment, from data to figures: what is made, and what is said of it."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import Project
from tiny import CONFIG, FEW, FIGURES, LAYERS, NETWORK, NOTHING, POINTS, SCHEDULES, SECOND, run_folder

from scap.criterion.terms import needs
from workflow.code import NEVER, definitions_of
from workflow.figures import FIGURES as DECLARED

ROOT = Path(__file__).parents[2]


def test_all_artifacts_are_made(project):
    """Also that the parts of the config reach the steps: three layers, eight epochs, six runs."""
    fidelities = {path.stem for path in (project / f"{FEW}/autoencoders/{SECOND}").glob("*.csv")}
    assert fidelities == LAYERS
    assert len((project / f"{NETWORK}/baseline.history.csv").read_text().splitlines()) == 1 + 8
    header, *rows = (project / "results/tables/quick.csv").read_text().splitlines()
    assert header.startswith("network,seed,criterion,widths,size,compensation,schedule,threshold,")
    assert ["/".join(row.split(",")[2:7]) for row in rows] == [f"{point}/{SCHEDULES[point]}" for point in POINTS]
    figures = {path.name for path in (project / "results/figures/quick").iterdir() if path.suffix != ".json"}
    assert figures == {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")}
    assert (project / "results/figures/sizes/sensitivity.png").is_file()
    for point in POINTS:
        assert (project / run_folder(point) / "pruned.safetensors").is_file()
        trained = SCHEDULES[point] != "none"
        assert (project / run_folder(point, SCHEDULES[point]) / "finetuned.safetensors").is_file() == trained


def test_the_table_of_runs_says_what_was_made_of_each(project):
    table = pd.read_csv(project / "results/tables/quick.csv")
    untrained, trained = table[table["schedule"] == "none"], table[table["schedule"] == "short"]
    assert (untrained["top1"] == untrained["top1_pruned"]).all()
    assert (untrained[["finetune_epochs", "finetune_seconds"]] == 0).all(axis=None)
    assert (trained["finetune_epochs"] == 1).all()
    assert trained["threshold"].tolist() == [0.5] * 4
    assert untrained["threshold"].isna().all()
    assert (untrained["macs"] <= 0.8 * untrained["macs_baseline"]).all()  # the budget
    assert untrained["macs"].nunique() == 1  # the same channels go, with and without compensation
    assert (table["macs_removed"] == 1 - table["macs"] / table["macs_baseline"]).all()
    assert (table[["top1", "top1_pruned", "top1_baseline", "holdout_top1"]] <= 100).all(axis=None)


def test_widths_are_those_of_the_criterion_that_is_named(project):
    """l1 keeps as many channels of each layer as scap does, or the same share of all layers at no more MACs."""
    own, taken, uniform = (pd.read_csv(project / run_folder(POINTS[index]) / "channels.csv") for index in (0, 2, 3))
    pd.testing.assert_frame_equal(own, taken)
    macs = pd.read_csv(project / "results/tables/quick.csv")["macs"]
    assert macs[2] == macs[0]
    assert macs[3] <= macs[0]
    shares = uniform["after"] / uniform["before"]
    assert shares.max() - shares.min() < 1 / uniform["before"].min()


def test_the_table_of_sensitivity_counts_the_networks_that_were_pruned(project):
    table = pd.read_csv(project / "results/tables/sizes.sensitivity.csv", index_col=["criterion", "widths"])
    runs = pd.read_csv(project / "results/tables/quick.csv", index_col=["criterion", "widths"])
    assert list(table.index) == [("scap-second", "own"), ("scap", "own"), ("l1", "uniform-scap")]
    for column in ("macs", "params", "macs_removed", "params_removed"):
        assert (table[column] == runs.loc[table.index, column]).all()
    assert table.iloc[0][["rank_correlation_first", "kept_in_common_first"]].tolist() == [1, 1]
    assert table["rank_correlation_l1"].iloc[2] == 1
    assert table["autoencoder.bottleneck"].tolist()[:2] == [3, 2]


def test_a_setting_of_a_criterion_hides_no_column_of_its_run(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow/scripts")
    spelt_out = importlib.import_module("workflow.scripts.sensitivity_table").spelt_out
    flat = spelt_out({"terms": {"l1": 1.0}, "seed": 7, "reverse": False, "autoencoder": {"seed": 3}})
    assert flat == {"terms.l1": 1.0, "criterion.seed": 7, "criterion.reverse": False, "autoencoder.seed": 3}


def test_a_criterion_of_terms_that_are_measured_on_activations(finished, tmp_path):
    """The terms are measured once, on the activations that are there, and then fused."""
    project = Project(shutil.copytree(finished[0].folder, tmp_path / "copy"))
    strong = "  strong: {terms: {novelty: 1, rms: 0}, calibration: {images: 32}}\n  l1: {"
    scores = f"{NETWORK}/strong/scores.csv"
    with project.edited(CONFIG, "  l1: {", strong):
        assert project.plan(scores) == {"term": {"novelty", "rms"}, "scores": {"strong"}}
        project.snakemake(scores)
    table = pd.read_csv(project / scores)
    for term in ("novelty", "rms"):
        assert (pd.read_csv(project / f"{FEW}/terms/{term}.csv")[term] == table[term]).all()
    by_layer = table.groupby("layer", sort=False)["novelty"]
    expected = (table["novelty"] - by_layer.transform("min")) / (by_layer.transform("max") - by_layer.transform("min"))
    assert (table["novelty"] <= table["rms"] * (1 + 1e-9)).all()
    assert table["score"].tolist() == pytest.approx(expected.tolist())


def test_a_second_run_has_nothing_to_do(project):
    assert NOTHING in project.snakemake()


def definition_at(path: Path, line: int) -> set[str]:
    """The names that the statement at the top of a module binds which a line belongs to."""
    for node in ast.parse(path.read_text()).body:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if first <= line <= (node.end_lineno or first):
            names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
            return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else names
    raise AssertionError(f"{path} has no line {line}")


def roots(note: dict) -> list[str]:
    """What a job looks up by a name that its configuration has: as in workflow/rules/common.smk."""
    wildcards, terms = note["wildcards"], {"l1": ["l1"], "conditional": []}
    if note["rule"] == "figure":
        return [DECLARED[wildcards["figure"]].function]
    found = {"term": [wildcards.get("term")], "scores": terms.get(wildcards.get("criterion"), ["fidelity", "l1"])}.get(
        note["rule"], []
    )
    assert note["rule"] != "scores" or not any(needs(term) & {"outputs", "network"} for term in found)
    return [f"scap.criterion.terms:{term}" for term in found]


# Called, but there is nothing for them to do where the network is unpruned.
NO_PLAN = {("scap.pruning.files", "_own_plan"), ("scap.pruning.history", "applied")}


def test_the_digest_of_a_script_counts_every_function_that_its_jobs_called(finished):
    """`code_of` reads the code; the jobs noted which functions ran in truth."""
    project, ran = finished
    rules, called = set(), 0
    for note in map(json.loads, map(Path.read_text, (project / "notes").iterdir())):
        script, without = Path(note["script"]).name, ("scap.criterion.terms:TERMS",)
        counted = definitions_of(script, *roots(note), without=without, folder=project.folder)
        counted |= NO_PLAN if script in NEVER else set()
        rules.add(note["rule"])
        for file, line in note["called"]:
            module = file.removesuffix(".py").replace("/", ".")
            assert {(module, name) for name in definition_at(project / file, line)} & counted, f"{note['rule']}: {file}:{line}"
            called += 1
    assert rules == {job.rule for job in ran} - {"all"}
    assert called > 5 * len(rules)


def test_a_run_prints_few_lines_and_ends_with_its_tables(project):
    """At most 60 lines without a terminal, for as many rules and tables as this."""
    printed = (project / "hook/printed.txt").read_text()
    lines = printed.rstrip().splitlines()
    assert len(lines) <= 60, printed
    assert "jobs (100%) done" in printed
    for comparison, table in (("quick", "quick"), ("sizes", "sizes.sensitivity")):
        assert f"results/tables/{table}.csv: " in printed
        assert f"Figures: results/figures/{comparison}/" in printed
    assert [line.split()[0] for line in lines[-3:]] == ["Next:", "snakemake", "python"]
    assert not re.search(r"^(local)?rule ", printed, re.MULTILINE)
    assert printed.count("epoch ") <= 5  # of 12: a slow machine tells how a long training fares, ever more rarely


def test_what_each_rule_has_cost(finished):
    """Read from the benchmark files: as many jobs of each rule as ran."""
    project, ran = finished
    header, *rows = (line.split() for line in project.python("-m", "workflow.costs").splitlines())
    assert header == ["jobs", "total_s", "mean_s", "longest_s", "memory_mb"]
    counts = Counter(job.rule for job in ran if job.rule != "all")
    assert {rule: int(jobs) for rule, jobs, *_ in rows[1:]} == counts
    assert all(float(total) > 0 for _, _, total, *_ in rows[1:])
    assert "nowhere: no benchmark file" in project.python("-m", "workflow.costs", "nowhere", succeeds=False)


def test_the_report_is_one_page_with_tables_figures_and_provenance(project):
    """Self-contained: nothing is fetched when it is opened."""
    project.snakemake("--report", "report.html")
    page = (project / "report.html").read_text()
    names = ("tables/quick.csv", "tables/sizes.sensitivity.csv", "figures/quick/tradeoff.png", "figures/sizes/sensitivity.png")
    for name in names:
        assert f"results/{name}" in page
    assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']https?:""", page)


def test_snakemake_finds_the_workflow_in_good_condition(new_project):
    """But for containers and conda environments: the workflow runs in the environment that it is installed in."""
    project = new_project(None)
    lints = project.snakemake("--lint", succeeds=False)
    found = {line.strip(" *:.") for line in lints.splitlines() if line.startswith("    * ")}
    assert found == {"Specify a conda environment or container for each rule"}


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "snakefmt --check Snakefile workflow"])
def test_style(command):
    result = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
