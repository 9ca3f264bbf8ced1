"""Checksums of inputs are Snakemake's own, computed once for each state of a file."""

import asyncio
import hashlib
import os
from types import SimpleNamespace

from snakemake.io import IOFile, _IOFile

from workflow.checksums import remember_checksums


def checksum(path):
    file = IOFile(str(path), rule=None)
    file.rule = SimpleNamespace(workflow=SimpleNamespace(iocache=SimpleNamespace(active=False)))
    return asyncio.run(file.checksum(10**9))


def test_a_file_is_read_once_for_each_state_of_it(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(_IOFile, "checksum", _IOFile.checksum)  # puts it back
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, algorithm: read.append(file.name) or digest(file, algorithm))
    remember_checksums()
    path = tmp_path / "data"
    contents = [b"one", b"two", b"one"]
    for place, content in enumerate(contents):
        path.write_bytes(content)
        os.utime(path, ns=(place, place))
        assert {checksum(path) for _ in range(3)} == {f"sha256:{hashlib.sha256(content).hexdigest()}"}
    assert len(read) == len(contents)
    path.unlink()
    assert checksum(path) is None
