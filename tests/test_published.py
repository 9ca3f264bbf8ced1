"""The published tables and figures come out of the stored scores and metrics: no training, no data, no weights."""

import filecmp
import tarfile
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images

PUBLISHED = Path(__file__).parent.parent / "docs/results"
# What draws and tabulates; with these alone, Snakemake takes all else as given.
RULES = ("table", "study", "figure", "study_figure")


@pytest.fixture(scope="module")
def remade(new_project):
    """A copy of the project that has nothing but the stored files, and made of them what is published."""
    project = new_project(None)
    for archive in (PUBLISHED / "stored").iterdir():
        with tarfile.open(archive) as file:
            file.extractall(project.folder, filter="data")
    wanted = [str(Path("results") / path.relative_to(PUBLISHED)) for path in published()]
    assert not any((project / path).exists() for path in wanted)
    project.snakemake(*wanted, "--allowed-rules", *RULES)
    return project


def published():
    """The files in docs/results that come from stored files; those at half width are older than the store."""
    names = [path.name.split(".")[0] for path in (PUBLISHED / "stored").iterdir()]
    files = [*(PUBLISHED / "tables").glob("*.csv"), *(PUBLISHED / "figures").glob("*/*.png")]
    return [path for path in files if any(part.startswith(tuple(names)) for part in (path.stem, path.parent.name))]


@pytest.mark.parametrize("path", published(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_published_is_remade_from_the_store(remade, path):
    made = remade / str(Path("results") / path.relative_to(PUBLISHED))
    if path.suffix == ".csv":
        assert filecmp.cmp(path, made, shallow=False)
    else:
        assert compare_images(str(path), str(made), tol=1) is None
