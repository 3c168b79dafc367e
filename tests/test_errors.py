from __future__ import annotations

import pickle

import pytest

from dmt_plugin.core import errors
from dmt_plugin.core.findings import Finding, sort_findings

NOTE = Finding("DMT101", "info", "emb.3", "table is used twice")
BAD = Finding("DMT201", "error", "inter", "no way\nthrough", "set transform.on_unsupported")


def test_finding_is_one_line():
    assert str(BAD) == "DMT201 error: inter: no way through | set transform.on_unsupported"
    assert str(NOTE) == "DMT101 info: emb.3: table is used twice"
    assert "(model)" in str(Finding("DMT100", "warning", "", "x"))


@pytest.mark.parametrize("code, severity", [("DMT1", "error"), ("X101", "error"), ("DMT101", "fatal")])
def test_finding_refuses_unknown_codes_and_severities(code, severity):
    with pytest.raises(ValueError, match="finding"):
        Finding(code, severity, "m", "r")


def test_findings_are_sorted_by_severity_then_code():
    assert sort_findings([NOTE, BAD]) == (BAD, NOTE)


def test_transform_error_formats_and_keeps_its_findings():
    error = errors.TransformError([NOTE, BAD])
    lines = str(error).splitlines()
    assert "1 place must change" in lines[0]
    assert lines[1].strip() == str(BAD) and lines[2].strip() == str(NOTE)
    assert error.findings == (BAD, NOTE)


def test_transform_error_survives_pickling():
    error = errors.TransformError([BAD], "refused")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.findings == error.findings


@pytest.mark.parametrize(
    "name, builtin",
    [
        ("ConfigError", ValueError),
        ("TopologyError", RuntimeError),
        ("PlanError", ValueError),
        ("PairingError", ImportError),
        ("ExchangeError", RuntimeError),
        ("IdRangeError", IndexError),
        ("MemoryNeedError", MemoryError),
        ("TablesReleasedError", RuntimeError),
        ("CaptureError", RuntimeError),
    ],
)
def test_each_error_is_a_dmt_error_and_a_builtin(name, builtin):
    cls = getattr(errors, name)
    assert issubclass(cls, errors.DMTError) and issubclass(cls, builtin)
