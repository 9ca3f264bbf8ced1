"""The recipe for several processes, run by torchrun."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SETUP = """
import scap, torch
from torch import nn

torch.manual_seed(0)
smaller = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
images = torch.randn(48, 3, 6, 6)
labels = (images.mean((1, 2, 3)) > 0).long()
settings = scap.TrainingSettings(epochs=2, batch_size=16, learning_rate=0.05)
"""
SAVE = """
import os
torch.save(smaller.state_dict(), f"{os.environ['FOLDER']}/{os.environ['RANK']}.pt")
"""


def test_two_processes_of_torchrun_end_with_the_weights_of_one(tmp_path):
    section = (ROOT / "docs/recipes.md").read_text().split("## Fine-tune on several GPUs")[1].split("\n## ")[0]
    (recipe,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "finetune.py").write_text(SETUP + recipe + SAVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "finetune.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FOLDER": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone: dict = {}
    exec(SETUP + "history = scap.finetune(smaller, (images, labels), settings)", alone)
    for name, value in alone["smaller"].state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
