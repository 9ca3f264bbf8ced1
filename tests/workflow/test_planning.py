"""What snakemake plans for a target, and what it refuses before any job, in one line and without a traceback."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from conftest import jobs
from tiny import CONFIG, NETWORK, run_folder

from scap.data.sources import RAW_FILES
from workflow.references import RULE

CIFAR_FILES = RAW_FILES["cifar10"]
SCORES = "results/vgg16-digits/seed0/{}/scores.csv"


@pytest.fixture(scope="module")
def fresh(new_project):
    """The tiny experiment, nothing made."""
    return new_project()


@pytest.fixture(scope="module")
def shipped(new_project):
    """The project with its own configuration, and no data."""
    return new_project(None)


def refused(project, *arguments):
    """What snakemake says to what it refuses: something short, and nothing is made."""
    output = project.snakemake("--dry-run", *arguments, succeeds=False)
    assert "Traceback" not in output
    assert len(output.splitlines()) < 10
    assert not any((project / name).exists() for name in ("results", "logs"))
    return output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("terms: {l1: 1}", "trems: {l1: 1}", "config: criteria.l1: unknown key 'trems'; did you mean 'terms'?"),
        (
            "criteria: [scap, scap-second],",
            "criteria: [scap, scap-3],",
            "config: comparisons.quick.runs.0.criteria: 'scap-3' is not in",
        ),
        ("  l1: {terms", "  scap: {terms", "the key 'scap' stands here twice"),
        ("thresholds: [0.5]", "thresholds: [1:30]", "1:30 can be read in two ways; quote it"),
        ("all: [quick, sizes]", "all: [quick, sizes]\n  scores: [quick]", "config: targets.scores: a rule has this name"),
        ("{source: digits}", "{source: cifar10}", "config: datasets.digits: 'root' is missing; name the folder"),
        (
            "{source: digits}",
            "{source: cifar10, root: nowhere, download: false}",
            "config: datasets.digits: nowhere/cifar-10-batches-py/data_batch_1 is missing; put the official files there",
        ),
    ],
)
def test_a_mistake_in_the_configuration(fresh, old, new, message):
    with fresh.edited(CONFIG, old, new):
        assert message in refused(fresh)


def test_a_mistake_in_a_file_of_the_users(fresh, tmp_path):
    mine = tmp_path / "mine.yaml"
    for text, message in (
        ("criteria: {mine: {like: scap, terms: {l2: 1}}}", "config: criteria.mine: terms: 'l2' is unknown"),
        ("networks: {tiny: {width: 1, width: 2}}", "mine.yaml:1: the key 'width' stands here twice"),
        ("networks: {tiny: {width: 2026-01-01}}", "mine.yaml:1: 2026-01-01 can be read in two ways"),
    ):
        mine.write_text(text)
        assert message in refused(fresh, "--configfile", str(mine))


def test_a_mistake_on_the_command_line(fresh):
    assert "config: networks.tiny: unknown key 'widht'" in refused(fresh, "--config", "networks={tiny: {widht: 1}}")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (run_folder("scap/own/threshold-0.60/none"), "threshold-0.60: write the number as threshold-0.6"),
        (run_folder("scap/own/macs-1/none"), "macs-1: write the number as macs-1.0"),
        (run_folder("scap/own/macs-0.0/none"), "macs-0.0: nothing would be left; give a share above 0"),
        (run_folder("scap/own/threshold-0.5/none").replace("seed0", "seed00"), "MissingRuleException"),
        (run_folder("scap/own/threshold-1.5/none"), "MissingRuleException"),
        (run_folder("scap/own/threshold--0.0/none"), "MissingRuleException"),
        (run_folder("scap/l2/threshold-0.5/none"), "MissingRuleException"),
        (run_folder("l2/own/threshold-0.5/none"), "MissingRuleException"),
        (run_folder("scap/own/threshold-0.5/half"), "MissingRuleException"),
    ],
)
def test_a_path_that_names_nothing(fresh, target, message):
    assert message in refused(fresh, f"{target}/pruned.safetensors")
    assert message in refused(fresh, f"{target}/none/metrics.json")


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("sizes/finetuning.png", "config: comparisons.sizes: 'finetuning' draws trainings, but all schedules are 'none'"),
        ("of-l1/method.pdf", "config: comparisons.of-l1: 'method' needs a criterion with the term fidelity"),
        ("of-rms/sensitivity.png", "config: comparisons.of-rms: 'sensitivity' compares rankings with the L1 norm"),
    ],
)
def test_a_figure_that_cannot_be_made_of_its_runs(fresh, figure, message):
    """Its comparison does not list it, so that only the path asks for it."""
    grid = "networks: [tiny], seeds: [0], thresholds: [0.5], schedules: [none]"
    names = ("l1", "rms")
    more = "".join(f"  of-{name}: {{runs: [{{{grid}, criteria: [{name}]}}], figures: [tradeoff]}}\n" for name in names)
    rms = "  l1: {terms: {l1: 1}}\n  rms: {terms: {rms: 1}}\n"
    with fresh.edited(CONFIG, "targets:\n", f"{more}targets:\n"), fresh.edited(CONFIG, "  l1: {terms: {l1: 1}}\n", rms):
        assert message in refused(fresh, f"results/figures/{figure}")


def test_a_schedule_that_the_network_does_not_have(fresh):
    target = run_folder("scap/own/threshold-0.5/none", "shrot")
    assert "'shrot' is no schedule of tiny; choose one of none, short" in refused(fresh, f"{target}/metrics.json")


def test_a_terminal_of_another_encoding_than_utf_8(fresh):
    """Snakemake writes what tables are called in the encoding of the terminal."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1"]
    done = subprocess.run(
        command, cwd=fresh.folder, env=fresh.environment() | ascii_alone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is not UTF-8, in which files are written: export PYTHONUTF8=1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_number_on_the_command_line(fresh):
    value = "networks={'tiny': {'width': 0.02}}"
    assert "rule baseline:" in fresh.snakemake("--dry-run", f"{NETWORK}/baseline.safetensors", "--config", value)


def test_two_data_sets_of_the_same_files_download_them_once(fresh):
    """Their roots may be written in two ways."""
    two = "{source: digits}\n  one: {source: cifar10, root: raw}\n  two: {source: cifar10, root: ./raw/}"
    with fresh.edited(CONFIG, "{source: digits}", two):
        output = fresh.snakemake("--dry-run", "results/data/one.safetensors", "results/data/two.safetensors")
    assert Counter(job.rule for job in jobs(output)) == {"download_one": 1, "data": 2}


@pytest.mark.parametrize("download", ["true", "false"])
def test_damaged_data(fresh, download):
    for name in CIFAR_FILES:
        (fresh / "damaged" / name).parent.mkdir(parents=True, exist_ok=True)
        (fresh / "damaged" / name).write_bytes(b"not what was published")
    with fresh.edited(CONFIG, "{source: digits}", f"{{source: cifar10, root: damaged, download: {download}}}"):
        output = refused(fresh)
    assert re.search(r"damaged/cifar-10-batches-py/data_batch_1: damaged \(MD5 .*\); delete it and download again", output)


def test_a_small_threshold_is_planned(fresh):
    """Python writes it as 1e-05."""
    with fresh.edited(CONFIG, "thresholds: [0.5]", "thresholds: [0.00001]"):
        assert f"{run_folder('scap/own/threshold-1e-05/none')}/pruned.safetensors" in fresh.snakemake("--dry-run")


@pytest.mark.parametrize(
    ("criterion", "rules"),
    [
        ("l1", {}),
        ("random", {}),
        ("rms", {"activations": 1, "term": 1}),
        ("novelty", {"activations": 1, "term": 1}),
        ("conditional", {"term": 1}),
        ("scap", {"activations": 1, "spectrum": 13, "autoencoder": 13}),
    ],
)
def test_only_what_a_score_reads_is_planned(shipped, criterion, rules):
    """No autoencoders and no spectra for those that never read them, no activations for those of weights alone."""
    planned = shipped.plan(SCORES.format(criterion))
    assert {rule: len(jobs) for rule, jobs in planned.items()} == {"data": 1, "baseline": 1, "scores": 1} | rules


def test_no_transform_is_planned_for_an_autoencoder_in_space(shipped):
    planned = shipped.plan("results/vgg16-cifar10/seed0/scap-space/scores.csv")
    assert "spectrum" not in planned
    assert len(planned["autoencoder"]) == 13


def counts_of(output):
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


@pytest.mark.parametrize(
    ("target", "counts"),
    [
        ("all", {"baseline": 1, "autoencoder": 13, "prune": 9, "finetune": 9, "runs_table": 1, "figure": 5}),
        ("token", {"download_cifar10": 1, "baseline": 1, "autoencoder": 13}),
        # Three seeds, each with one baseline, 13 spectra and 13 autoencoders for all its points and runs, and the activations
        # of as many images as scap takes and as novelty takes.
        (
            "paper",
            {"download_cifar10": 1, "data": 1}
            | dict.fromkeys(("baseline", "evaluate_baseline"), 3)
            | {"activations": 3 * 2}
            | dict.fromkeys(("spectrum", "autoencoder"), 3 * 13)
            | {"scores": 3 * 5, "prune": 3 * 21, "finetune": 3 * 29, "evaluate": 3 * 29, "runs_table": 2},
        ),
        ("ablations", {"download_cifar10": 1, "baseline": 3, "runs_table": 4, "sensitivity_table": 1}),
    ],
)
def test_a_target_plans_each_step_once(shipped, target, counts):
    planned = counts_of(shipped.snakemake(target, "--dry-run", "--quiet", "rules"))
    assert counts.items() <= planned.items()
    assert "download_cifar10" in counts or not any(rule.startswith("download") for rule in planned)


@pytest.mark.parametrize(
    ("target", "groups"),
    [
        ("all", {"layer": 4, "scores": 1, "run": 9, "report": 1}),  # and four by themselves: 19 submissions
        ("paper", {"layer": 10, "scores": 1, "run": 63, "report": 2}),
    ],
)
def test_few_jobs_are_submitted_to_slurm(shipped, target, groups):
    output = shipped.snakemake(target, "--dry-run", "--workflow-profile", "profiles/slurm")
    assert Counter(re.findall(r"^\[[^\]]*\] Group job (\w+)", output, re.MULTILINE)) == groups
    alone = {"data", "baseline", "evaluate_baseline", "activations", "term", "download_cifar10", target}
    assert set(re.findall(r"^(?:local)?rule (\w+):", output, re.MULTILINE)) <= alone


def test_every_rule_that_is_short_is_grouped(shipped):
    """A group of a rule that does not exist, or a short rule without one, would be a submission for every job."""
    profile = (shipped / "profiles/slurm/config.yaml").read_text()
    grouped = set(re.findall(r"^  (\w+): (?:layer|scores|run|report)", profile, re.MULTILINE))
    rules = {
        name for path in (shipped / "workflow/rules").glob("*.smk") for name in re.findall(RULE, path.read_text(), re.MULTILINE)
    }
    alone = {"data", "image_list", "checkpoint", "trained_weights", "named_weights", "baseline", "baseline_from_weights"}
    alone |= {"evaluate_baseline", "activations", "term", "coupled_scores"}
    assert grouped == rules - alone


def test_a_network_is_trained_once_for_all_that_is_made_of_it(fresh):
    planned = fresh.plan()
    assert {rule: len(names) for rule, names in planned.items()} == {
        **dict.fromkeys(("data", "baseline", "evaluate_baseline", "activations", "term", "method_table"), 1),
        **{"spectrum": 3, "autoencoder": 6, "scores": 4, "prune": 6, "finetune": 4, "evaluate": 6},
        **{"runs_table": 1, "sensitivity_table": 1, "figure": 6},
    }
    assert fresh.plan(f"{NETWORK}/baseline.safetensors") == {"data": {""}, "baseline": {""}}


IN_ROUNDS = """
datasets: {digits: {source: digits}}
networks:
  tiny:
    architecture: vgg16
    width: 0.0625
    dataset: digits
    coupled: true
    gpu: 2
    baseline: {epochs: 1, batch_size: 64, learning_rate: 0.05}
    finetuning:
      short: {epochs: 1, batch_size: 64, learning_rate: 0.05}
      thrice: {like: short, rounds: 3}
criteria: {l1: {terms: {l1: 1}}}
comparisons: {all: {runs: [{networks: [tiny], seeds: [0], criteria: [l1], macs: [0.5], schedules: [short, thrice]}]}}
targets: {all: [all]}
"""


@pytest.fixture(scope="module")
def in_rounds(new_project):
    """A coupled network on two GPUs, pruned at once and in three rounds, nothing made."""
    return new_project(IN_ROUNDS)


def test_the_first_round_shares_the_scores_of_runs_without_rounds(in_rounds):
    output = in_rounds.snakemake("--dry-run", "--resources", "gpu=2")
    planned = Counter(job.rule for job in jobs(output))
    assert planned == Counter(
        {
            **dict.fromkeys(("data", "baseline", "evaluate_baseline", "coupled_scores", "coupled_prune", "runs_table"), 1),
            **{"round_prune": 3, "round_scores": 2, "round_finetune": 2, "finetune": 2, "evaluate": 2, "figure": 2, "all": 1},
        }
    )
    asked = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: .*?gpu=(\d)", output, re.MULTILINE)
    assert set(asked) == {
        *((rule, "2") for rule in ("finetune", "round_finetune")),
        *((rule, "1") for rule in ("baseline", "evaluate", "evaluate_baseline", "coupled_scores", "round_scores")),
    }


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("macs-0.5/compensation-none/short/metrics.json", (), "gpu: 2 are wanted at once, but this run may use 1; add --res"),
        ("threshold-0.5/compensation-none/thrice/metrics.json", ("--resources", "gpu=2"), "'thrice' prunes in 3 rounds, which"),
        ("macs-0.5/compensation-none/thrice/rounds/4/pruned.safetensors", (), "'thrice' of tiny has no round 4, but 3"),
    ],
)
def test_rounds_and_gpus_that_cannot_be_had(in_rounds, target, arguments, message):
    assert message in refused(in_rounds, f"{NETWORK}/l1/widths-own/{target}", *arguments)
