"""The published tables and figures come out of the stored scores and metrics: no training, no data, no weights."""

import tarfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.testing.compare import compare_images

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "docs/results"
STORED = sorted((PUBLISHED / "stored").glob("*.tar.xz"))
STUDIES = yaml.safe_load((ROOT / "config/config.yaml").read_text())["studies"]


def published() -> list[Path]:
    """The tables and figures of what an archive is named after; those at half width are older than the archives."""
    names = tuple(path.name.removesuffix(".tar.xz") for path in STORED)
    files = [*(PUBLISHED / "tables").glob("*.csv"), *(PUBLISHED / "figures").glob("*/*.png")]
    return sorted(path for path in files if (path.stem if path.suffix == ".csv" else path.parent.name).startswith(names))


@pytest.fixture(scope="module")
def remade(new_project):
    """A copy of the project that has nothing but the stored files, and what is published made of them."""
    project = new_project(None)
    for archive in STORED:
        with tarfile.open(archive) as file:
            file.extractall(project.folder, filter="data")
    wanted = [str(Path("results") / path.relative_to(PUBLISHED)) for path in published()]
    assert not any((project / path).exists() for path in wanted)
    assert not list((project / "results").rglob("*.safetensors"))
    # With these rules alone, Snakemake takes all else as given.
    project.snakemake(*wanted, "--allowed-rules", "table", "study", "figure", "study_figure")
    return project


def test_something_is_published():
    assert {path.suffix for path in published()} == {".csv", ".png"}


@pytest.mark.parametrize("path", published(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_published_is_remade(remade, path):
    made = remade / str(Path("results") / path.relative_to(PUBLISHED))
    if path.suffix == ".png":
        assert compare_images(str(path), str(made), tol=1) is None
    elif path.stem in STUDIES:  # correlations: their last digit is the processor's
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(made), rtol=1e-12)
    else:
        assert path.read_bytes() == made.read_bytes()
