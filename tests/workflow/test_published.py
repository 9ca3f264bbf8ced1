"""The published tables come out of stored scores and metrics, the figures out of tables: no training, data or weights."""

import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.testing.compare import compare_images

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs/results"
STORED = sorted((PUBLISHED / "stored").glob("*.tar.xz"))
TABLES = [PUBLISHED / "tables" / path.name.replace(".tar.xz", ".csv") for path in STORED]
FIGURES = sorted((PUBLISHED / "figures").glob("*/*.png"))
STUDIES = yaml.safe_load((ROOT / "config/config.yaml").read_text())["studies"]


def made(path: Path) -> str:
    """Where the workflow makes what is published at a path."""
    return str(Path("results") / path.relative_to(PUBLISHED))


@pytest.fixture(scope="module")
def remade(new_project):
    """A copy of the project that has nothing but the stored files, and what is published made of them."""
    project = new_project(None)
    for archive in STORED:
        with tarfile.open(archive) as file:
            file.extractall(project.folder, filter="data")
    assert not list((project / "results").rglob("*.safetensors"))
    assert not (project / "results/tables").exists()
    # With these rules alone, Snakemake takes all else as given.
    project.snakemake(*map(made, TABLES), "--allowed-rules", "table", "study")
    for path in set((PUBLISHED / "tables").glob("*.csv")) - set(TABLES):  # older than the archives
        shutil.copy(path, project / made(path))
    project.snakemake(*map(made, FIGURES), "--allowed-rules", "figure", "study_figure")
    return project


def test_something_is_published():
    assert TABLES
    assert FIGURES


@pytest.mark.parametrize("path", [*TABLES, *FIGURES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_published_is_remade(remade, path):
    again = remade / made(path)
    if path.suffix == ".png":
        assert compare_images(str(path), str(again), tol=1) is None
    elif path.stem in STUDIES:  # correlations: their last digit is the processor's
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(again), rtol=1e-12)
    else:
        assert path.read_bytes() == again.read_bytes()
