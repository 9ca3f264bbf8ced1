"""torchvision imports beside any build of torch; other failures are not hidden."""

import importlib
import subprocess
import sys

import pytest
import torch

from scap.data import torchvision_cure as torchvision_compat
from scap.data.torchvision_cure import import_torchvision


def test_data_sets_are_there_and_a_second_import_gives_the_same_module():
    torchvision = import_torchvision()
    assert torchvision.datasets.CIFAR10.base_folder == "cifar-10-batches-py"
    assert import_torchvision() is torchvision
    assert sys.modules["torchvision"] is torchvision


def test_a_fresh_interpreter_can_import_it():
    code = "from scap.data.torchvision_cure import import_torchvision as f; print(f().datasets.MNIST.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "MNIST", done.stderr


@pytest.fixture
def failing_import(monkeypatch):
    """Make the first import of torchvision fail with a given error; record what is defined, load nothing."""

    def fail_with(error):
        answers, defined = [error, "torchvision, cured"], []

        def import_module(name):
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        class Library:
            def __init__(self, *arguments):
                assert arguments == ("torchvision", "DEF")

            def define(self, schema):
                defined.append(schema)

        monkeypatch.setattr(importlib, "import_module", import_module)
        monkeypatch.setattr(torch.library, "Library", Library)
        monkeypatch.setattr(torchvision_compat, "_declared", [])
        monkeypatch.setattr(sys, "modules", {"torchvision.half": None, "torchvision_else": None, **sys.modules})
        return defined

    return fail_with


def test_the_missing_schemas_are_declared_and_half_imported_modules_dropped(failing_import):
    defined = failing_import(RuntimeError("operator torchvision::nms does not exist"))
    assert import_torchvision() == "torchvision, cured"
    assert [schema.split("(")[0] for schema in defined] == ["nms", "qnms"]
    assert "torchvision.half" not in sys.modules
    assert "torchvision_else" in sys.modules
    assert torchvision_compat._declared, "the library must outlive the import"


@pytest.mark.parametrize("error", [RuntimeError("disk on fire"), ImportError("No module named torchvision")])
def test_other_failures_pass_through_uncured(failing_import, error):
    defined = failing_import(error)
    with pytest.raises(type(error), match=str(error)):
        import_torchvision()
    assert defined == []
