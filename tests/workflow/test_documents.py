"""The documents say what the tables, the settings and the code say, in plain words."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

import scap
from scap.errors import ScapError
from scap.published import PUBLISHED, PUBLISHED_TOP1
from workflow import documents, manual
from workflow import tables as workflow_tables
from workflow.configuration import load_configuration
from workflow.documents import BLOCK, fill
from workflow.lineage import RUN, Lineage, runs_of, size_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = documents.documents()
PAGES = [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
README = (ROOT / "README.md").read_text()
METHOD = (ROOT / "docs/method.md").read_text()
LAYOUT = (ROOT / "docs/layout.md").read_text()
RECIPES = (ROOT / "docs/recipes.md").read_text()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """A page without what is made, fenced or indented code, code in lines, tables and addresses."""
    text = BLOCK.sub("", text)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?: {4,}(?! *[-*\d]).*|\|.*)$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", "", text)


# Blocks


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_block_is_what_its_table_says(path):
    """Where this fails: python -m workflow.documents"""
    assert fill(path.read_text()) == path.read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_blocks_are_whole_and_lines_begin_with_words(path):
    text = path.read_text()
    assert text.count("<!-- made by:") == text.count("<!-- end -->") == len(BLOCK.findall(text))
    # Markdown takes a line that begins with a comment for HTML: a value stands inside of its line.
    assert not re.findall(r"^\s*<!-- made by: [^>]+-->[^\n]", text, re.MULTILINE)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A repository with one table of runs, and one of a benchmark."""
    runs = [
        {"network": "net", "seed": seed, "criterion": criterion, "macs_removed": 0.5, "params_removed": 0.75, "top1": top1}
        | {"widths": "own", "size": "macs-0.5", "compensation": "none", "schedule": "none", "holdout_top1": None}
        | {"device": "CPU", "torch": "2.13", "finetune_seconds": 900}
        for criterion, values in {"scap": (80.0, 82.0), "l1": (81.0, 82.5)}.items()
        for seed, top1 in enumerate(values)
    ]
    for folder in ("results/tables", "benchmarks/results"):
        (tmp_path / folder).mkdir(parents=True)
    pd.DataFrame(runs).to_csv(tmp_path / "results/tables/runs.csv", index=False)
    cost = {"layer": ["a", "b"], "C": [64, 2048], "s": [0.12345, 12345.6], "note": "Quiet", "machine": "one core"}
    pd.DataFrame(cost).to_csv(tmp_path / "benchmarks/results/cost.csv", index=False)
    monkeypatch.setattr(workflow_tables, "ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "results"], check=True)


MADE = {
    "value runs top1 criterion=scap": "81.00",
    "value runs top1 max criterion=scap,l1 form=.1f unit=%": "82.5 %",
    "value benchmarks/cost s C=100..": "12345.60",
    "change runs top1 against=criterion=scap criterion=l1": "+0.75",
    "change runs top1 min against=criterion=l1 criterion=scap": "−1.00",
    "summary runs show=flops,top1": (
        "| criterion | FLOPs removed | top-1 |\n| --- | --- | --- |\n"
        "| `scap` | 50.00 % | 81.00 ± 1.41 % |\n| `l1` | 50.00 % | 81.75 ± 1.06 % |"
    ),
    "summary runs by=criterion,seed show=top1 order=-top1 seed=0": (
        "| criterion | seed | top-1 |\n| --- | --- | --- |\n| `l1` | 0 | 81.00 % |\n| `scap` | 0 | 80.00 % |"
    ),
    "seeds runs of=top1 also=top1 criterion=scap": (
        "| criterion | seed 0 | seed 1 | top-1, mean | top-1, mean |\n| --- | --- | --- | --- | --- |\n"
        "| `scap` | 80.00 | 82.00 | 81.00 | 81.00 |"
    ),
    "overview": (
        "| table | networks | runs | seeds | device | torch | fine-tuning, h |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        "| `results/tables/runs.csv` | net | 4 | 0, 1 | CPU | 2.13 | 1.0 |"
    ),
    "published": (
        "### runs\n\n    snakemake --cores all results/tables/runs.csv\n\n"
        "| criterion | FLOPs removed | parameters removed | top-1 |\n| --- | --- | --- | --- |\n"
        "| `scap` | 50.00 % | 75.00 % | 81.00 ± 1.41 % |\n| `l1` | 50.00 % | 75.00 % | 81.75 ± 1.06 % |"
    ),
    "benchmark cost columns=layer,s": (
        "| layer | s |\n| --- | --- |\n| a | 0.123 |\n| b | 12,346 |\n\nQuiet. Machine: one core."
    ),
}


@pytest.mark.parametrize("call", MADE)
def test_what_is_made(tables, call):
    assert fill(f"So <!-- made by: {call} -->old<!-- end -->!") == f"So <!-- made by: {call} -->{MADE[call]}<!-- end -->!"


def test_a_block_stands_in_lines_of_its_own(tables):
    made = "<!-- made by: value runs top1 criterion=scap -->\n\n81.00\n\n<!-- end -->"
    assert fill("<!-- made by: value runs top1 criterion=scap -->\n<!-- end -->") == made
    assert fill(made) == made


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("value missing top1", "there is no table results/tables/missing.csv; make it, or correct the name"),
        ("value runs top1 colour=red", "'colour' is no column of the table; they are network, seed, criterion"),
        ("value runs top1 criterion=scrap", "no row of the table has {'criterion': 'scrap'}"),
        ("value runs top2", "Column not found: top2"),
        ("value runs top1", "a seed has several values of 'top1'; choose among runs that differ in criterion"),
        ("change runs top1 criterion=l1 against=network=net", "not unique in right dataset"),
        ("change runs top1 network=net against=criterion=l1", "not unique in left dataset"),
        ("summary runs by=network", "a seed has several values of 'top1'; choose among runs that differ in criterion"),
        ("seeds runs by=network of=top1", "a seed has several values of 'top1'; choose among runs that differ in criterion"),
        ("tabel runs", "'tabel'"),
        ("summary", "missing 1 required positional argument"),
    ],
)
def test_a_block_that_cannot_be_made_is_quoted(tables, call, message):
    with pytest.raises(ScapError) as error:
        fill(f"<!-- made by: {call} -->\n<!-- end -->")
    assert str(error.value).startswith(f"'made by: {call}': ")
    assert message in str(error.value)


def test_the_tables_of_settings_hold_every_setting():
    for section, cls in manual.SETTINGS.items():
        described = [each for each in cls.__dataclass_fields__ if "description" in cls.__dataclass_fields__[each].metadata]
        assert re.findall(r"^\| `(\w+)` \|", manual.settings(section), re.MULTILINE) == described


# Numbers

KNOWN = {f"{100 * share:.2f}" for share in PUBLISHED.values()} | {f"{top1:.2f}" for top1 in PUBLISHED_TOP1.values()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_measured_number_is_typed(path):
    """Percentages, points and ratios of decimals stand in blocks; the published result is compared with scap/published.py."""
    found = re.findall(r"([\d.,]+\d|\d)\s*(?:%|points\b|percent\b)|(?<![\d.])(\d\.\d{3,})(?![\d.])", prose(path.read_text()))
    assert {number for pair in found for number in pair if number} <= KNOWN


# Prose

AVOID = {
    r"\banew\b": "from scratch, again",
    r"graphics processor": "GPU",
    r"\b(?:our|this|that|each|every|other|another|default|provisional|no|one|of|which) readings?\b(?! (?:a|the) )": (
        "interpretation, variant"
    ),
    r"\bReadings of\b": "interpretations",
    r"(?<!sensitivity )(?<!ablation )\b[Ss]tud(?:y|ies)\b": "sensitivity study, table of sensitivity",
    r"(?<![\"`])\btracks?\b(?![\"`])": "schedule",
    r"\bturn(?:s|ed|ing)? round\b": "reverse",
    r"\b(?:goes|went|go|going) on\b(?! top)": "resume, continue",
    r"\bway out\b": "how to fix it",
    r"[Pp]ut .{1,4}-n.{1,2} behind": "add -n",
    r"[Ww]rong bytes": "files with a wrong checksum",
    r"\bthe second one runs\b": "the second runs",
}
PYTHON = ("scap/**/*.py", "workflow/**/*.py", "benchmarks/*.py", "docs/*.py")
SOURCES = (*PYTHON, "workflow/rules/*.smk", "config/**/*", "profiles/**/*")
FILES = sorted({*PAGES, ROOT / "Snakefile", *(path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file())})


@pytest.mark.parametrize("path", FILES, ids=name)
def test_words_are_plain(path):
    text = path.read_text()
    text = prose(text) if path.suffix == ".md" else text
    text = re.sub(r"\s+", " ", text)
    found = {match.group(): better for words, better in AVOID.items() for match in re.finditer(words, text)}
    assert not found


def test_the_readme_fits_on_two_screens():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_lines_of_prose_wrap_at_100(path):
    text = BLOCK.sub(lambda match: "" if "\n" in match["body"] else match["body"], path.read_text())
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith(("|", "    ", "!["))]
    assert [line for line in long if not re.fullmatch(r"\s*(?:- )?\S+", line)] == []


# Links, commands and examples


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.exists(), target
            assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_and_modules_that_are_named_exist(path):
    text = BLOCK.sub("", path.read_text())
    for module in re.findall(r"python -m ((?:workflow|benchmarks)\.\w+)", text):
        assert module == "benchmarks.NAME" or (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for file in re.findall(r"`((?:scap|workflow|tests|config|profiles|benchmarks|docs)/[\w./-]+\.\w+)`", text):
        assert "NAME" in file or (ROOT / file).is_file(), file


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```", RECIPES, re.DOTALL | re.MULTILINE))
def test_the_recipes_of_configurations_are_accepted(text, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text("")
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load_configuration(ROOT / "config", [tmp_path / "mine.yaml"])


PATHS = re.findall(r"^    snakemake .*?(results/\S+)", "\n".join(path.read_text() for path in PAGES), re.MULTILINE)


def test_the_paths_in_commands_are_ones_that_the_workflow_makes():
    config = load_configuration(ROOT / "config")
    pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(RUN)) + r"/metrics\.json")
    metrics = [path for path in PATHS if path.endswith("metrics.json")]
    assert metrics
    for path in metrics:
        run = pattern.fullmatch(path).groupdict()
        grid = {
            "networks": [run["network"]],
            "seeds": [0],
            "criteria": [run["criterion"]],
            "compensations": [run["compensation"]],
        }
        size = size_of(run["size"])
        sizes = {"thresholds": [size["threshold"]] if "threshold" in size else [], "macs": [], "params": [], "budgets": []}
        if len(size) > 1:
            sizes["budgets"] = [size]
        elif "threshold" not in size:
            sizes |= {kind: [value] for kind, value in size.items()}
        assert run["network"] in config["networks"]
        assert run["criterion"] in config["criteria"]
        assert run["compensation"] in config["compensations"]
        assert run["schedule"] in {"none", *config["networks"][run["network"]]["finetuning"]}
        (made,) = runs_of({**grid, **sizes, "widths": [run["widths"]], "schedules": [run["schedule"]]})
        assert {key: str(value) for key, value in made.items()} == run


def test_the_targets_in_commands_exist():
    targets = load_configuration(ROOT / "config")["targets"]
    named = re.findall(r"snakemake --cores all ([a-z]\w+)\b(?!/)", README + RECIPES)
    assert named
    assert set(named) <= targets.keys()


def test_what_dvc_shows_is_what_the_quickstart_makes():
    shown = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    paths = [*shown["metrics"], *(path for plot in shown["plots"] for path in plot)]
    assert set(paths) <= set(Lineage(load_configuration(ROOT / "config")).target("all"))


@pytest.mark.parametrize(
    "walk", re.split(r"^### ", LAYOUT.split("## Walks")[1], flags=re.MULTILINE)[1:], ids=lambda text: text.splitlines()[0]
)
def test_a_walk_names_two_files_of_code_at_most_and_what_is_in_them(walk):
    steps = re.findall(r"^\d\. `([\w./]+)`:(.*?)(?=^\d\. |\Z)", walk.split("\n\nIt can")[0], re.DOTALL | re.MULTILINE)
    code = [file for file, _ in steps if not file.startswith("tests/")]
    assert len(code) <= 2
    for file, text in steps:
        source = (ROOT / file).read_text() if "NAME" not in file else ""
        assert all(constant in source for constant in re.findall(r"`([A-Z_]{3,})`", text) if source), file


def test_the_picture_is_what_its_script_draws():
    command = [sys.executable, "-c", "import picture; print(picture.picture(), end='')"]
    drawn = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True, check=True).stdout
    assert drawn == (ROOT / "docs/method.svg").read_text()


# The method


def resolve(full: str) -> object:
    """A module, or what is in it, by its full name."""
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError:
        above, _, attribute = full.rpartition(".")
        return getattr(resolve(above), attribute)


def test_functions_and_tests_that_pages_name_exist():
    pages = "\n".join(path.read_text() for path in PAGES)
    for full in set(re.findall(r"`(scap\.[\w.]+)`", METHOD + LAYOUT + RECIPES)):
        assert resolve(full) is not None
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [test for test in re.findall(r"`(test_\w+)`", pages) if f"def {test}(" not in tests]
    assert not missing


def test_every_equation_is_in_the_table_of_functions_and_tests():
    equations = {int(number) for number in re.findall(r"^    \((\d+)\)", METHOD, re.MULTILINE)}
    rows = re.findall(r"^\| ((?:\d+)(?:, \d+)*) [^|]*\| `scap[^|]*\| `test_", METHOD, re.MULTILINE)
    assert {int(number) for row in rows for number in row.split(", ")} == equations == set(range(1, max(equations) + 1))


def test_the_code_refers_to_equations_that_exist():
    equations = {int(number) for number in re.findall(r"^    \((\d+)\)", METHOD, re.MULTILINE)}
    for path in (ROOT / "scap").rglob("*.py"):
        for phrase in re.findall(r"equations? (\d+(?:(?:,| and| to) \d+)*)", path.read_text()):
            assert {int(number) for number in re.findall(r"\d+", phrase)} <= equations, path.name


# Public names


def test_the_example_in_the_readme_is_that_of_the_package():
    example = (scap.__doc__ or "").split("\n\n")[1].replace("\n    ", "\n").strip()
    assert example in (ROOT / "README.md").read_text()


PUBLIC = [name for name in scap.__all__ if not isinstance(getattr(scap, name), type)]
SETTINGS = ["AutoencoderSettings", "CriterionSettings"]


@pytest.mark.parametrize("public", PUBLIC)
def test_docstrings_of_public_functions_say_what_goes_in_and_comes_out(public):
    function = getattr(scap, public)
    sections = re.split(r"^ {4}(Args|Returns|Raises|Example):\n", function.__doc__ or "", flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert re.findall(r"^ {8}(\w+): ", found["Args"], re.MULTILINE) == list(inspect.signature(function).parameters)
    assert found["Raises"].lstrip().startswith("ScapError: ")
    assert inspect.signature(function).return_annotation in (None, "None") or found["Returns"].strip()


@pytest.mark.parametrize("public", PUBLIC + SETTINGS)
def test_examples_of_public_names_run(public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(scap, public), public, globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_example_in_the_readme_runs(tmp_path, monkeypatch):
    """And the file that it writes loads again."""
    monkeypatch.chdir(tmp_path)

    def make_network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))

    for text in (README, RECIPES):
        given = {"network": make_network().eval(), "images": torch.randn(64, 3, 8, 8), "make_network": make_network}
        exec(re.findall(r"^```python\n(import scap.*?)^```", text, re.DOTALL | re.MULTILINE)[0], given)
        torch.testing.assert_close(given["again"](given["images"]), given["smaller"](given["images"]))
