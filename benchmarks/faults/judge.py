"""What a case of the campaign is, and what is said of it.

1. A kind of case has a function that makes one case from a source of random numbers and an empty folder, does what a
   user would do, and returns an :class:`Outcome`: taken, or refused.
2. The function itself compares what was taken with what is right, and raises :class:`Wrong` where it differs; it lets
   through every error but those that the product has for the fault.
3. :func:`judge` turns whatever comes out into a :class:`Verdict`. A case is right only if there is an outcome.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dmt_plugin.core.errors import DMTError

Must = Literal["taken", "refused", "either"]
Result = TypeVar("Result")

WRONG, REFUSED, FOREIGN, TOO_LONG, DIED = (
    "silently wrong",
    "refused although it is right",
    "an error of somebody else's",
    "longer than its limit",
    "the process died",
)
"""What may be wrong with a case."""


class Wrong(AssertionError):
    """Something was taken that is not right, or was computed otherwise than it must be."""


class Refused(AssertionError):
    """Something was refused that is right."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case that went right.

    Attributes:
        how: whether it was taken or refused.
        must: what it had to be.
        what: what kind of fault, or of right case, it was.
        figures: what else is to be counted, such as ``{"kills": 5}``.
    """

    how: Literal["taken", "refused"]
    must: Must
    what: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One kind of case.

    Attributes:
        name: in one word, as ``--only`` takes it.
        about: what its cases are, for the help.
        cases: how many half an hour has.
        run: makes and judges one case.
        generated: whether at least 30 % of its cases have to be right ones.
        alone: whether a case starts processes, so that no other such case may run beside it.
        limit_s: seconds that a case may take.
        prepare: is called once, before all cases, with the folder that they share.
    """

    name: str
    about: str
    cases: int
    run: Callable[[random.Random, Path, Path], Outcome]
    generated: bool = True
    alone: bool = False
    limit_s: float = 60.0
    prepare: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Verdict:
    """What is said of a case.

    Attributes:
        kind: its kind.
        number: which of that kind.
        seconds: how long it took.
        problem: empty, or one of the constants above.
        said: of a problem: the error.
        outcome: of a case that went right.
    """

    kind: str
    number: int
    seconds: float
    problem: str = ""
    said: str = ""
    outcome: Outcome | None = None

    @property
    def again(self) -> str:
        """The argument that repeats it."""
        return f"--only {self.kind}:{self.number}"


def settled(must: Must, what: str, error: DMTError | None, figures: Mapping[str, float] | None = None) -> Outcome:
    """The outcome of a case whose results were compared already.

    Args:
        must: what it had to be.
        what: what it was.
        error: the refusal, of a class that the caller allows; None: it was taken.
        figures: see :class:`Outcome`.

    Raises:
        Wrong: it was taken and had to be refused; or it was refused without a word.
        Refused: the other way round.
    """
    if error is None and must == "refused":
        raise Wrong(f"{what}: taken, and had to be refused")
    if error is not None and must == "taken":
        raise Refused(f"{what}: refused, and had to be taken: {type(error).__name__}: {error}")
    if error is not None and len(str(error)) < 10:
        raise Wrong(f"{what}: refused without a reason: {error!r}")
    return Outcome("taken" if error is None else "refused", must, what, figures or {})


def attempt(call: Callable[[], Result], *refusals: type[DMTError]) -> tuple[Result | None, DMTError | None]:
    """The result of a call, or the error of one of these very classes that it raised; other errors go on."""
    try:
        return call(), None
    except refusals as error:
        return None, error


def expect(right: bool, what: str, found: Any = "") -> None:
    """Raises:
    Wrong: it is not.
    """
    if not right:
        raise Wrong(f"{what}{f': {found}' if found != '' else ''}")


def judge(kind: Kind, number: int, shared: Path) -> Verdict:
    """Does one case, in a folder of its own.

    Args:
        kind: its kind.
        number: which; the same number is the same case.
        shared: what ``kind.prepare`` has filled.
    """
    began, room = time.monotonic(), Path(tempfile.mkdtemp(prefix=f"{kind.name}-"))
    outcome, problem, said = None, "", ""
    try:
        outcome = kind.run(random.Random(f"{kind.name}:{number}"), room, shared)
    except Wrong as error:
        problem, said = WRONG, str(error)
    except Refused as error:
        problem, said = REFUSED, str(error)
    except Exception as error:
        problem, said = FOREIGN, "".join(traceback.format_exception(error))[-3000:]
    finally:
        shutil.rmtree(room, ignore_errors=True)
    seconds = time.monotonic() - began
    if not problem and seconds > kind.limit_s:
        problem, said = TOO_LONG, f"{seconds:.1f} s, {kind.limit_s:g} s are allowed"
    return Verdict(kind.name, number, seconds, problem, said, outcome)
