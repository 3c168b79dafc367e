"""Trials of FBGEMM's rules: what it refuses is a reason, what goes wrong in this package is an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup import fbgemm_rules
from dmt_plugin.nn.lookup.fbgemm import OPTIMIZERS, FbgemmTables
from dmt_plugin.nn.lookup.plain_torch import TorchTables

CPU = torch.device("cpu")
RULE = Rule("sgd", 0.1)


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are made, and none of these is remembered."""
    monkeypatch.setattr(fbgemm_rules, "_tried", fbgemm_rules._tried.__wrapped__)


def test_an_option_on_which_fbgemm_asserts_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fbgemm_rules.why_not(RULE, CPU) == ""
    monkeypatch.setitem(OPTIMIZERS, "sgd", "LAMB")
    why = fbgemm_rules.why_not(RULE, CPU)
    assert why.startswith("FBGEMM does not run its rule") and "not supported in CPU mode" in why


@pytest.mark.parametrize("error", [AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError])
@pytest.mark.parametrize("kind", [TorchTables, FbgemmTables])
def test_an_error_of_this_package_is_none(kind: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise error("ours")

    monkeypatch.setattr(kind, "step", broken)
    with pytest.raises(error, match="ours"):
        fbgemm_rules.why_not(RULE, CPU)
