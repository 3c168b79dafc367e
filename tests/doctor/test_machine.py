"""What one process finds out about its machine, and about a machine where things are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dmt_plugin.core import versions as pairing
from dmt_plugin.core.errors import NotInstalledError, PairingError
from dmt_plugin.doctor import machine


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_this_machine_is_well():
    for check in (machine.versions, machine.fbgemm, machine.compiler, machine.accelerator):
        finding = check()
        assert finding.status == "ok", finding
    assert machine.versions().data["versions"]["torch"]


def test_versions_that_do_not_belong_together_fail_with_the_command(monkeypatch):
    version = pairing._version
    monkeypatch.setattr(pairing, "_version", lambda name: "0.1" if name == "deepspeed" else version(name))
    finding = machine.versions()
    assert finding.status == "fail"
    assert "deepspeed 0.1" in finding.found and "expected deepspeed==" in finding.expected
    assert finding.change.startswith("pip install 'deepspeed==")


def test_no_fbgemm_is_a_warning_and_a_broken_one_a_failure(monkeypatch):
    def absent():
        raise NotInstalledError("fbgemm is not installed. Mend it with: pip install 'dmt-plugin[cpu]'")

    def broken():
        raise PairingError("fbgemm-gpu 1.0 cannot be loaded: CUDA is not installed. Mend it with: pip install it again")

    monkeypatch.setattr(machine, "import_fbgemm", absent)
    assert machine.fbgemm().status == "warn" and machine.fbgemm().change == "pip install 'dmt-plugin[cpu]'"
    monkeypatch.setattr(machine, "import_fbgemm", broken)
    assert machine.fbgemm().status == "fail"


def test_without_compiler_and_ninja(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compiler().status == "warn" and "PATH" in machine.compiler().found
    finding = machine.ninja()
    assert finding.status == "warn" and "not on PATH" in finding.found
    if Path(sys.executable).with_name("ninja").exists():
        assert str(Path(sys.executable).parent) in finding.change


def test_a_compiler_that_does_not_compile(monkeypatch, tmp_path):
    program(tmp_path, "c++", "echo 'cannot find crt1.o' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = machine.compiler()
    assert finding.status == "warn" and "cannot find crt1.o" in finding.found


@pytest.mark.parametrize("status, expected", [(0, "ok"), (1, "warn")])
def test_ninja_has_to_run(monkeypatch, tmp_path, status, expected):
    program(tmp_path, "ninja", f"echo 9.9; exit {status}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.ninja().status == expected
