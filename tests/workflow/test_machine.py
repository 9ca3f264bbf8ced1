"""What a run is planned by."""

import re

import pytest

from workflow.machine import has_gpu


def test_a_gpu_is_what_its_driver_makes(tmp_path):
    device = tmp_path / "nvidia0"
    assert not has_gpu([str(device), str(tmp_path / "kfd")])
    device.touch()
    assert has_gpu([str(tmp_path / "kfd"), str(device)])


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_a_baseline_without_a_gpu_has_all_cores_though_its_network_wants_one(new_project):
    project = new_project(None)
    with project.edited("config/config.yaml", "    holdout: 200\n", "    holdout: 200\n    gpu: 1\n"):
        planned = project.python(
            "-m", "snakemake", "--dry-run", "--cores", "2", "results/vgg16-digits/seed0/baseline.safetensors"
        )
    job = planned[planned.index("rule baseline:") :].partition("rule data:")[0]
    assert "gpu=1" in job
    assert re.search(r"threads: 2\n", job), job
