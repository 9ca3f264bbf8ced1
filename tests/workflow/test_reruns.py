"""A change reruns what follows from it, and nothing else."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project
from tiny import (
    CONFIG,
    CRITERIA,
    FEW,
    FIGURES,
    FIRST,
    LAYERS,
    NETWORK,
    NOTHING,
    POINTS,
    SECOND,
    from_pruning,
    points_of,
    run_folder,
)

SENSITIVITY = {"sizes/sensitivity"}
TRAINED = {"data", "baseline"}


def after_scores(criteria: set[str], figures: set[str]) -> dict[str, set[str]]:
    """The jobs that follow from score tables of which figure `scores` is one where it is named."""
    jobs = from_pruning(points_of(*criteria), figures)
    return {"scores": criteria} | jobs | {"sensitivity_table": {"sizes"}, "figure": jobs["figure"] | SENSITIVITY}


def test_another_threshold_prunes_and_finetunes_again(project):
    at_threshold = {point for point in POINTS if "threshold" in point}
    with project.edited(CONFIG, "thresholds: [0.5]", "thresholds: [0.4]"):
        expected = from_pruning(at_threshold, FIGURES - {"method"})
        expected |= {"sensitivity_table": {"sizes"}, "figure": expected["figure"] | SENSITIVITY}
        renamed = {rule: {name.replace("-0.5", "-0.4") for name in names} for rule, names in expected.items()}
        assert project.plan() == renamed


def test_other_weights_of_the_terms_score_again(project):
    """And so do the controls that take their widths from this criterion, but not the others."""
    with project.edited(CONFIG, "fidelity: 0.75, l1: 0.25", "fidelity: 0.5, l1: 0.5"):
        assert project.plan() == after_scores({"scap"}, FIGURES - {"method"})


def test_another_bottleneck_makes_its_autoencoders_again(project):
    with project.edited(CONFIG, "bottleneck: 3", "bottleneck: 4"):
        autoencoders = {f"bottleneck-4+epochs-3/{layer}" for layer in LAYERS}
        after = after_scores({"scap-second"}, {"tradeoff", "finetuning"})
        assert project.plan() == {"autoencoder": autoencoders, **after}


def test_another_compensation_prunes_its_points_again(project):
    with project.edited(CONFIG, "how: full, images: 64", "how: full, images: 65"):
        assert project.plan() == from_pruning({"conditional/own/macs-0.8/full"}, {"tradeoff"})


def test_another_training_makes_all_but_the_data_again(project):
    with project.edited(CONFIG, "epochs: 8", "epochs: 9"):
        plan = project.plan()
    assert set(plan) >= {"baseline", "evaluate_baseline", "activations", "term", "scores", "figure"}
    assert "data" not in plan


def test_settings_of_a_criterion_that_change_no_score_score_again_alone(project):
    """The score is the same: what follows is not made again once it has been made."""
    with project.edited(CONFIG, "l1: {terms: {l1: 1}}", "l1: {terms: {l1: 1}, normalise: {l1: min-max}}"):
        assert project.plan()["scores"] == {"l1"}


def commented(text: str) -> str:
    """Python or Snakemake code with other comments, docstrings and empty lines."""
    text = re.sub(r'^( *)"""(?=\w)', r'\1"""Edited. ', text, flags=re.MULTILINE)
    text = re.sub(r"^( *)(def \w+\(.*|class \w+.*|rule \w+:|return .*[^(,])$", r"\1# edited\n\1\2", text, flags=re.MULTILINE)
    return text.replace("\n\n\n", "\n\n\n\n") + "# the end\n"


@contextmanager
def rewritten(project: Project, paths: list[Path]) -> Iterator[None]:
    """Each file with other comments, for a while."""
    with ExitStack() as stack:
        for path in paths:
            text = path.read_text()
            stack.callback(path.write_text, text)
            path.write_text(commented(text))
            assert path.read_text() != text
        yield


def test_comments_and_docstrings_anywhere_rerun_nothing(project):
    """In every file of the library and of the workflow, all at once."""
    paths = [
        path for folder in ("scap", "workflow") for path in (project / folder).rglob("*") if path.suffix in (".py", ".smk")
    ]
    paths = [path for path in [*paths, project / "Snakefile"] if path.stat().st_size]
    assert len(paths) > 60
    with rewritten(project, paths):
        assert NOTHING in project.snakemake("--dry-run")


def test_a_touched_file_reruns_nothing(project):
    for folder in ("scap", "workflow", "config"):
        for path in (project / folder).rglob("*.*"):
            os.utime(path)
    os.utime(project / "Snakefile")
    assert NOTHING in project.snakemake("--dry-run")


def backwards(value: Any) -> Any:
    """The same settings, written in another order."""
    if isinstance(value, list):
        return [backwards(item) for item in value]
    return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def test_another_spelling_of_the_same_settings_reruns_nothing(project):
    text = (project / CONFIG).read_text()
    other = yaml.safe_dump(backwards(yaml.safe_load(text)), sort_keys=False)
    assert other.index("l1: 0.25") < other.index("fidelity: 0.75")
    assert "l1: 1\n" in other
    try:
        (project / CONFIG).write_text(other.replace("l1: 1\n", "l1: 1.0\n"))
        assert NOTHING in project.snakemake("--dry-run")
    finally:
        (project / CONFIG).write_text(text)


# A changed line: the file, the line and what it becomes; which jobs it reruns at once or by what they read, and which never.
CHANGES = {
    "surgery": (
        "scap/pruning/cutting/trials.py",
        ("or self.misnamed(layer) for layer in plan}\n", "or self.misnamed(layer) for layer in [*plan]}\n"),
        {"prune": set(POINTS), "evaluate": None, "finetune": None, "sensitivity_table": {"sizes"}},
        {*TRAINED, "activations", "spectrum", "autoencoder", "scores", "method_table"},
    ),
    "spectra": (
        "scap/criterion/spectra.py",
        ("def write_spectra(", "len('')\n\n\ndef write_spectra("),
        {
            "spectrum": LAYERS,
            "autoencoder": {f"{name}/{layer}" for name in (FIRST, SECOND) for layer in LAYERS},
            "scores": None,
        },
        TRAINED,
    ),
    "fusion": (
        "scap/criterion/fusion.py",
        ("    weights = list(settings.terms.values())\n", "    weights = [*settings.terms.values()]\n"),
        {"scores": CRITERIA, "prune": None},
        {*TRAINED, "activations", "spectrum", "autoencoder", "term", "method_table"},
    ),
    "a term": (
        "scap/criterion/terms.py",
        ("    return np.abs(weight).sum(", "    len(weight)\n    return np.abs(weight).sum("),
        {"scores": {"scap", "scap-second", "l1"}, "prune": None},
        {*TRAINED, "activations", "spectrum", "autoencoder", "term", "method_table"},
    ),
    "a term that nothing uses": (
        "scap/criterion/terms.py",
        (
            "    return np.sqrt(second_moments(outputs).diagonal().clip(0))",
            "    return np.sqrt(second_moments(outputs).diagonal())",
        ),
        {},
        None,
    ),
    "a figure": (
        "scap/figures/channels.py",
        ("    before, after = table[", "    len(table)\n    before, after = table["),
        {"figure": {"quick/channels"}},
        None,
    ),
    "a script": (
        "workflow/scripts/prune.py",
        ("    own = read_scores(", "    len(inputs)\n    own = read_scores("),
        {"prune": set(POINTS)},
        {*TRAINED, "activations", "spectrum", "autoencoder", "scores", "method_table", "sensitivity_table"},
    ),
    "the loop of training": (
        "scap/training/loop.py",
        ("def train(", "len('')\n\n\ndef train("),
        {"baseline": {""}, "finetune": None},
        {"data"},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_line_reruns_what_uses_it(project, name):
    """`None`: all of the rule's jobs, or all other rules."""
    path, (old, new), planned, never = CHANGES[name]
    with project.edited(path, old, new):
        plan = project.plan()
    for rule, names in planned.items():
        assert plan[rule] == names if names is not None else plan[rule]
    unwanted = plan.keys() - planned.keys() if never is None else plan.keys() & never
    assert not unwanted


def test_a_deleted_autoencoder_is_made_again_alone(project):
    weights, scores = (
        project / name for name in (f"{FEW}/autoencoders/{FIRST}/conv2_2.safetensors", f"{NETWORK}/scap/scores.csv")
    )
    before = weights.read_bytes(), scores.read_bytes()
    weights.unlink()
    assert project.plan() == {"autoencoder": {f"{FIRST}/conv2_2"}, **after_scores({"scap"}, FIGURES - {"method"})}
    assert "the same command with --until autoencoder" in project.snakemake(succeeds=False)
    project.snakemake(str(weights.relative_to(project.folder)))
    assert (weights.read_bytes(), scores.read_bytes()) == before
    assert NOTHING in project.snakemake()  # the remade files equal the old ones, so nothing follows


def test_what_is_there_is_not_trained_again_because_a_data_set_has_gone(project):
    """As in a clone that was restored: another threshold needs the data set."""
    data = project / "results/data/digits.safetensors"
    kept = data.read_bytes()
    data.unlink()
    with project.edited(CONFIG, "thresholds: [0.5]", "thresholds: [0.45]"):
        assert "baseline" in project.plan()
        printed = project.snakemake(succeeds=False)
        (line,) = re.findall(r"^error: (.*)$", printed, re.MULTILINE)
        assert re.match(r"results/data/digits\.safetensors: is missing; made in this run, it would train again", line)
        assert f"{NETWORK}/baseline.safetensors" in line
        assert "Traceback" not in printed
        assert line.endswith("by the same command with --until data")
        project.snakemake("--until", "data")
        assert data.read_bytes() == kept
        plan = project.plan()
    assert "data" not in plan
    assert "baseline" not in plan
    assert all("-0.45" in name for name in plan["finetune"])


def test_what_is_there_is_not_trained_again_because_official_files_are_read_again(project):
    """As where they were moved (`root`), or the script reads them otherwise: the data set is most likely the same."""
    with project.edited(
        "workflow/scripts/data.py", 'if __name__ == "__main__":', 'OTHER = 1\nif OTHER and __name__ == "__main__":'
    ):
        assert "baseline" in project.plan()
        printed = project.snakemake(succeeds=False)
        assert f"error: {DATA}: may be made again as it was; made in this run, it would train again" in printed
        project.snakemake("--until", "data")
        assert NOTHING in project.snakemake("--dry-run")
    project.snakemake("--until", "data")


DATA = "results/data/digits.safetensors"
TRAINED_RUN = run_folder("scap/own/threshold-0.5/none", "short")


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damaged", "damage", "trained"),
    [
        (DATA, cut_off, f"{NETWORK}/baseline.safetensors"),
        (DATA, lambda content: b"", f"{NETWORK}/baseline.safetensors"),
        (
            f"{run_folder('scap/own/threshold-0.5/none')}/pruned.safetensors",
            cut_off,
            f"{TRAINED_RUN}/finetuned.safetensors",
        ),
    ],
)
def test_what_is_there_is_not_deleted_because_what_it_was_made_of_is_damaged(project, damaged, damage, trained):
    """Snakemake deletes what a job has made before the job can see the damage; the remedy that is named brings all back."""
    file, network = project / damaged, project / trained
    kept, model = file.read_bytes(), network.read_bytes()
    file.write_bytes(damage(kept))
    printed = project.snakemake(succeeds=False)
    (line,) = re.findall(r"^error: (.*)$", printed, re.MULTILINE)
    assert line.startswith(f"{damaged}: ")
    assert trained in line
    assert line.endswith(f"First make it again: snakemake --cores all --force {damaged}")
    assert "Traceback" not in printed
    assert network.read_bytes() == model
    project.snakemake("--force", damaged)
    assert file.read_bytes() == kept
    assert NOTHING in project.snakemake("--dry-run")


@pytest.mark.parametrize(
    ("criterion", "other", "message"),
    [
        ("scap", "scap-second", "the scores of layer conv1_1 are not what this criterion makes of its terms"),
        ("scap", "l1", "column 'fidelity' is missing"),
        ("l1", "scap", "the scores of layer conv1_1 are not what this criterion makes of its terms"),
    ],
)
def test_nothing_is_pruned_by_the_scores_of_another_criterion(project, criterion, other, message):
    """Their channels and layers are the same."""
    scores = project / f"{NETWORK}/{criterion}/scores.csv"
    kept = scores.read_bytes()
    scores.write_bytes((project / f"{NETWORK}/{other}/scores.csv").read_bytes())
    try:
        folder = run_folder(f"{criterion}/own/threshold-0.45/none")
        pruned = f"{folder}/pruned.safetensors"
        printed = project.snakemake(pruned, succeeds=False)
    finally:
        scores.write_bytes(kept)
    (line,) = re.findall(r"^error: (.*)$", printed, re.MULTILINE)
    assert line.startswith(f"{NETWORK}/{criterion}/scores.csv: {message}")
    assert line.endswith(f"make it again: snakemake --cores all --force {NETWORK}/{criterion}/scores.csv")
    project.snakemake(pruned)
    for made in (folder, folder.replace("results", "logs", 1)):  # as other tests count what has run
        shutil.rmtree(project / made)


@pytest.mark.parametrize("name", ["scap", "l1"])
def test_an_experiment_in_a_file_of_its_own_reruns_nothing_of_others(project, tmp_path, name):
    """The documented way to add to the configuration."""
    mine = (
        "criteria:\n  mine: {like: NAME, reverse: true}\n"
        "comparisons:\n  mine:\n    runs:\n      - {networks: [tiny], seeds: [0], criteria: [mine], thresholds: [0.5],"
        " schedules: [none]}\n    figures: [tradeoff]\n"
        "targets:\n  mine: [mine]\n"
    )
    (tmp_path / "mine.yaml").write_text(mine.replace("NAME", name))
    plan = project.plan("mine", "--configfile", str(tmp_path / "mine.yaml"))
    run = "mine/own/threshold-0.5/none"
    assert plan == {
        **{"scores": {"mine"}, "prune": {run}, "evaluate": {f"{run}/none"}, "runs_table": {"mine"}},
        "figure": {"mine/tradeoff"},
    }
    assert NOTHING in project.snakemake("--dry-run", "--configfile", str(tmp_path / "mine.yaml"))


def test_a_copy_of_the_results_in_another_place_has_nothing_to_do(project, tmp_path):
    """No path of the machine is in what decides."""
    shutil.copytree(project.folder, tmp_path / "copy")
    assert NOTHING in Project(tmp_path / "copy").snakemake("--dry-run")


def test_what_is_stale_is_seen_where_the_records_were_deleted(project, tmp_path):
    """.snakemake/ holds what Snakemake knows; the provenance files bring it back."""
    shutil.copytree(project.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".snakemake"))
    copy = Project(tmp_path / "copy")
    with copy.edited(CONFIG, "epochs: 8", "epochs: 9"):
        assert "baseline" in copy.plan()
    shutil.rmtree(copy / ".snakemake")
    assert NOTHING in copy.snakemake("--dry-run")
