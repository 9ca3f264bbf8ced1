"""Where a job computes: on a GPU only where it asks for one and there is one."""

from types import SimpleNamespace

import pytest
import torch

from workflow.scripts.device import pick_device, trained_on


@pytest.fixture(autouse=True)
def settings_put_back():
    threads, flags = torch.get_num_threads(), torch.backends.cudnn.flags(enabled=True)
    with flags:
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("gpu", "available", "device"), [(1, True, "cuda"), (1, False, "cpu"), (0, True, "cpu"), (None, True, "cpu")]
)
def test_the_device_is_what_the_job_asks_for_and_the_machine_has(monkeypatch, gpu, available, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    resources = {} if gpu is None else {"gpu": gpu}
    assert pick_device(SimpleNamespace(threads=1, resources=resources)) == device
    assert torch.get_num_threads() == 1
    if device == "cuda":
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32


def test_a_trained_network_tells_its_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert trained_on("cuda") == {"device": "a GPU", "torch": torch.__version__}
    assert "a GPU" not in trained_on("cpu")["device"]
