"""Every error that ``dmt_plugin`` raises for its users.

All of them are ``DMTError``; each is also the builtin error that a caller would expect in its place, so that
``except ValueError`` around a configuration error works as usual. Messages say what was found, what was
expected, and which key or call fixes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from dmt_plugin.core.findings import Finding, sort_findings


class DMTError(Exception):
    """Base of all errors of this package."""


class ConfigError(DMTError, ValueError):
    """The "dmt" section, or the file that holds it, cannot be used."""


class TopologyError(DMTError, RuntimeError):
    """Hosts and ranks per host cannot be determined, are impossible, or differ between ranks."""


class PlanError(DMTError, ValueError):
    """A tower plan is incomplete, inconsistent, or was made for another model or topology."""


class PairingError(DMTError, ImportError):
    """The installed torch, fbgemm, deepspeed and torchrec do not belong together."""


class NotInstalledError(PairingError):
    """A package that this one can do without is not installed."""


class ExchangeError(DMTError, RuntimeError):
    """A collective failed or ran into its time limit."""


class MemoryNeedError(DMTError, MemoryError):
    """A model needs more memory than the machine, or the control group that its ranks are in, has left."""


class CheckpointError(DMTError, RuntimeError):
    """A checkpoint is not whole, does not fit the model, or could not be written."""


class TableInitError(DMTError, ValueError):
    """There is no rule for the rows of a table that has none, or it cannot be recorded."""


class DataError(DMTError, ValueError):
    """A loader does not fit the model, the other ranks' loaders, or the position it is to go on from."""


class TablesReleasedError(DMTError, RuntimeError):
    """The tables of a flat model were used after ``initialize`` had given their rows to the ranks that own them.

    Args:
        what: what was asked for.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} is not possible: since dmt_plugin.initialize each rank holds its own rows of the tables and "
            "nothing else, so no process has the whole model. On every rank, call dmt_plugin.to_flat(engine) for the "
            "trained model, engine.gather_state() for its state dict (gather_state(out=...) for files), "
            "engine.save_checkpoint(folder) to go on from later, and engine.load_flat_state(state or path) to load a "
            "state dict of the flat model. For a penalty on the embeddings in the loss set dmt.lookup.weight_decay; to "
            "freeze tables in mid-run, or to go on training them, call engine.freeze_tables(names)."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.what,))


class ReportError(DMTError, ValueError):
    """The records of a run are missing, damaged, or of another version."""


class IdRangeError(DMTError, IndexError):
    """A batch holds an id outside its table's rows, or ids that cannot be read: of another type or shape, say."""


class FindingsError(DMTError, RuntimeError):
    """Something about the user's model stops us; ``findings`` says where and why.

    Args:
        findings: What is to be said; those of severity "error" come first in the message.
        summary: First line of the message; by default it counts the errors.
    """

    findings: tuple[Finding, ...]
    problem: ClassVar[str] = "the model cannot be used"

    def __init__(self, findings: Iterable[Finding], summary: str | None = None) -> None:
        self.findings = sort_findings(findings)
        errors = sum(finding.severity == "error" for finding in self.findings)
        if summary is None:
            places = "1 place" if errors == 1 else f"{errors} places"
            summary = f"{self.problem}: {places} must change"
        super().__init__("\n".join([summary, *(f"  {finding}" for finding in self.findings)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.findings, str(self).split("\n", 1)[0]))


class CaptureError(FindingsError):
    """The model could not be turned into a graph, or a call does not fit the graph that was made."""

    problem = "the model cannot be captured as a graph"


class TransformError(FindingsError):
    """The model cannot be rewritten safely."""

    problem = "the model cannot be transformed safely"
