"""The workflow on a tiny experiment: a change reruns what follows from it, and nothing else."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest

from workflow.code import definitions_of

ROOT = Path(__file__).parents[2]
CONFIG = "config/config.yaml"
NETWORK = "results/tiny/seed0"
LAYERS = {"conv1_1", "conv2_2", "conv5_3"}
CRITERIA = {"scap", "scap-second", "l1", "uniform"}
NOTHING = "Nothing to be done"


def from_pruning(criteria: set[str], figures: set[str]) -> dict[str, set[str]]:
    """The jobs from prune to the figures."""
    return {**dict.fromkeys(("prune", "finetune", "evaluate"), criteria), "table": {""}, "figure": figures}


STUDY = {"study": {""}, "study_figure": {""}}


def test_all_artifacts_are_made(project):
    """Also that the parts of the config reach the steps: three layers, eight epochs, four runs."""
    fidelities = {path.stem for path in (project / f"{NETWORK}/autoencoders/second").glob("*.csv")}
    assert fidelities == LAYERS
    assert len((project / f"{NETWORK}/baseline.history.csv").read_text().splitlines()) == 1 + 8
    header, *rows = (project / "results/tables/quick.csv").read_text().splitlines()
    assert header.startswith("network,seed,criterion,threshold,track,")
    assert [row.split(",")[2] for row in rows] == ["scap", "scap-second", "l1", "uniform"]
    figures = {path.name for path in (project / "results/figures/quick").iterdir() if path.suffix != ".json"}
    names = ("tradeoff", "finetuning", "method", "fidelity", "channels")
    assert figures == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    study = pd.read_csv(project / "results/tables/readings.csv", index_col="criterion")
    runs = pd.read_csv(project / "results/tables/quick.csv", index_col="criterion")
    assert list(study.index) == ["scap-second", "scap", "uniform"]
    for column in ("macs", "params", "macs_removed", "params_removed"):  # as in the networks that were pruned
        assert (study[column] == runs.loc[study.index, column]).all()
    assert study.loc["scap-second", ["rank_correlation_first", "kept_in_common_first"]].tolist() == [1, 1]
    assert study.loc["uniform", "rank_correlation_l1"] == 1
    assert study["autoencoder.bottleneck"].tolist()[:2] == [3, 2]
    assert (project / "results/figures/readings/study.png").is_file()


def test_the_magnitude_may_be_that_of_the_activations(new_project, finished):
    project = new_project()
    shutil.copytree(finished[0] / "results", project / "results")
    strong = "  strong: {method: scap, autoencoder: second, fusion: magnitude, magnitude_of: novelty}\n  uniform: {"
    with project.edited(CONFIG, "  uniform: {", strong):
        project.snakemake(f"{NETWORK}/strong/scores.csv", "--allowed-rules", "scores")
    strengths = pd.read_csv(project / f"{NETWORK}/calibrations/few/activations.csv")
    values, by_layer = strengths["novelty"], strengths.groupby("layer", sort=False)["novelty"]
    expected = (values - by_layer.transform("min")) / (by_layer.transform("max") - by_layer.transform("min"))
    assert (strengths["novelty"] <= strengths["rms"] * (1 + 1e-9)).all()
    assert pd.read_csv(project / f"{NETWORK}/strong/scores.csv")["score"].tolist() == pytest.approx(expected.tolist())


def test_a_second_run_has_nothing_to_do(project):
    assert NOTHING in project.snakemake()


def test_a_job_depends_on_the_modules_that_it_loads(finished):
    """`library` reads import statements; the jobs noted what they imported in truth, also lazily."""
    project, ran = finished
    declared, loaded = {}, defaultdict(set)
    for job in ran:
        declared[job.rule] = {name for name in job.inputs if name.startswith(("scap/", "workflow/"))}
    for note in map(json.loads, map(Path.read_text, (project / "notes").iterdir())):
        files = [(project / file).resolve() for file in note["files"]]
        names = {str(file.relative_to(project.folder)) for file in files if file.is_relative_to(project.folder)}
        # scap/__init__.py computes nothing.
        loaded[note["rule"]] |= {name for name in names if name.startswith(("scap/", "workflow/"))} - {"scap/__init__.py"}
    del declared["all"]
    assert len(declared) == 15
    assert dict(loaded) == declared


def definition_at(path: Path, line: int) -> set[str]:
    """The names that the statement at the top of a module binds which a line belongs to."""
    for node in ast.parse(path.read_text()).body:
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        if first <= line <= (node.end_lineno or first):
            names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
            return {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else names
    raise AssertionError(f"{path} has no line {line}")


def test_the_digest_of_a_script_counts_every_function_that_its_jobs_called(finished):
    """`code_of` reads the code; the jobs noted which functions ran in truth."""
    project, ran = finished
    rules, called = set(), 0
    for note in map(json.loads, map(Path.read_text, (project / "notes").iterdir())):
        counted = definitions_of(Path(note["script"]).name, folder=project.folder)
        rules.add(note["rule"])
        for file, line in note["called"]:
            module = file.removesuffix(".py").replace("/", ".")
            assert {(module, name) for name in definition_at(project / file, line)} & counted, f"{note['rule']}: {file}:{line}"
            called += 1
    assert rules == {job.rule for job in ran} - {"all"}
    assert called > 5 * len(rules)


def test_what_each_rule_has_cost(finished):
    """Read from the benchmark files: as many jobs of each rule as ran."""
    project, ran = finished
    header, *rows = (line.split() for line in project.python("-m", "workflow.costs").splitlines())
    assert header == ["jobs", "total_s", "mean_s", "longest_s", "memory_mb"]
    counts = Counter(job.rule for job in ran if job.rule != "all")
    assert {rule: int(jobs) for rule, jobs, *_ in rows[1:]} == counts
    assert all(float(total) > 0 for _, _, total, *_ in rows[1:])
    assert "nowhere: no benchmark file" in project.python("-m", "workflow.costs", "nowhere", succeeds=False)


def test_a_point_that_cannot_be_made_is_named(project):
    output = project.snakemake(f"{NETWORK}/scap/threshold-0.5/shrot/metrics.json", succeeds=False)
    assert re.search(r"'shrot' is no track of tiny; choose one of \w+", output)
    assert "Traceback (most recent call last)" not in output
    assert "MissingRuleException" in project.snakemake(f"{NETWORK}/autoencoders/first/conv9_9.csv", succeeds=False)


def test_another_threshold_prunes_and_finetunes_anew(project):
    with project.edited(CONFIG, "thresholds: [0.5]", "thresholds: [0.4]"):
        assert project.plan() == from_pruning(CRITERIA, {"tradeoff", "finetuning", "fidelity", "channels"})


def test_another_alpha_scores_anew(project):
    """And so do the controls that take their widths from this criterion, but not the other one."""
    with project.edited(CONFIG, "alpha: 0.75", "alpha: 0.5"):
        figures = {"tradeoff", "finetuning", "fidelity", "channels"}
        assert project.plan() == {"scores": {"scap"}, **STUDY, **from_pruning(CRITERIA - {"scap-second"}, figures)}


def test_another_bottleneck_makes_its_autoencoders_anew(project):
    with project.edited(CONFIG, "bottleneck: 3", "bottleneck: 4"):
        autoencoders = {f"second/{layer}" for layer in LAYERS}
        after = from_pruning({"scap-second"}, {"tradeoff", "finetuning"})
        assert project.plan() == {"autoencoder": autoencoders, "scores": {"scap-second"}, **STUDY, **after}


def test_another_training_makes_all_but_the_data_anew(project):
    with project.edited(CONFIG, "epochs: 8", "epochs: 9"):
        plan = project.plan()
    assert set(plan) >= {"baseline", "evaluate_baseline", "activations", "scores", "figure"}
    assert "data" not in plan


def test_the_report_is_one_page_with_tables_figures_and_provenance(project):
    """Self-contained: nothing is fetched when it is opened."""
    project.snakemake("--report", "report.html")
    page = (project / "report.html").read_text()
    for name in ("tables/quick.csv", "tables/readings.csv", "figures/quick/tradeoff.png", "figures/readings/study.png"):
        assert f"results/{name}" in page
    assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']https?:""", page)


def test_an_edited_module_reruns_what_it_computes(project):
    text = (project / "scap/criterion/spectra.py").read_text()
    with project.edited("scap/criterion/spectra.py", text, text + "# edited\n"):
        assert project.plan() == {
            "spectrum": LAYERS,
            "autoencoder": {f"{name}/{layer}" for name in ("first", "second") for layer in LAYERS},
            "scores": {"scap", "scap-second"},
            "method_table": {""},
            **STUDY,
            **from_pruning(CRITERIA, {"tradeoff", "finetuning", "method", "fidelity", "channels"}),
        }


def test_an_edit_of_the_scores_trains_no_baseline_and_no_autoencoder(project):
    text = (project / "scap/criterion/fusion.py").read_text()
    with project.edited("scap/criterion/fusion.py", text, text + "# edited\n"):
        plan = project.plan()
    assert plan["scores"] == CRITERIA
    assert not {"data", "baseline", "activations", "spectrum", "autoencoder"} & set(plan)


def test_a_touched_module_reruns_nothing(project):
    for path in (project / "scap").glob("*.py"):
        os.utime(path)
    assert NOTHING in project.snakemake()


def test_a_deleted_autoencoder_is_made_again_alone(project):
    weights, scores = (project / f"{NETWORK}/{name}" for name in ("autoencoders/first/conv2_2.safetensors", "scap/scores.csv"))
    before = weights.read_bytes(), scores.read_bytes()
    weights.unlink()
    figures = {"tradeoff", "finetuning", "fidelity", "channels"}
    after = from_pruning(CRITERIA - {"scap-second"}, figures)
    assert project.plan() == {"autoencoder": {"first/conv2_2"}, "scores": {"scap"}, **STUDY, **after}
    project.snakemake(str(weights.relative_to(project.folder)))
    assert (weights.read_bytes(), scores.read_bytes()) == before
    assert NOTHING in project.snakemake()  # the remade files equal the old ones, so nothing follows


def test_snakemake_finds_the_workflow_in_good_condition(new_project):
    assert "in a good condition" in new_project(None).snakemake("--lint")


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy", "snakefmt --check Snakefile workflow"])
def test_style(command):
    result = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
