"""The variants by name, and which have to train alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from benchmarks.step.model import Batch
from benchmarks.step.setting import Setting


class Variant(Protocol):
    """One way to train the model, on one rank."""

    def prepare(self, batch: Batch) -> Any:
        """A batch as this variant takes it; not timed."""

    def step(self, prepared: Any) -> Tensor:
        """One optimiser step; the rank's loss before it."""

    def tables(self) -> dict[int, Tensor]:
        """Tables that this rank owns, ``(rows, N)`` by feature."""

    def formula_bytes(self) -> int:
        """Bytes to other hosts in one step by formula; 0 where there is none."""


@dataclass(frozen=True)
class Entry:
    """How to make a variant.

    Attributes:
        make: from the setting.
        text: what it is, for people.
        equals: variant that it must train alike, or None: the same loss in every step, the same change of every table.
        tolerance: of the losses, relative.
    """

    make: Callable[[Setting], Variant]
    text: str
    equals: str | None = None
    tolerance: float = 1e-5


BASE = "torchrec_tw_fp32"
"""Every ratio is to this one."""


def _ours(**section: Any) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.ours import OursVariant

        return OursVariant(setting, section)

    return make


def _compressed(ratio: int, **comm: str) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.ours import OursVariant

        towers = {"module": "dlrm", "c": 1, "p": 0, "dim": setting.width // ratio}
        return OursVariant(setting, {"towers": towers, "comm": comm})

    return make


def _torchrec(messages: bool) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.torchrec_dmp import TorchRecVariant

        return TorchRecVariant(setting, messages)

    return make


_NONE = {"module": "none"}

VARIANTS: dict[str, Entry] = {
    BASE: Entry(_torchrec(True), "TorchRec table-wise, messages", "flat_fp32"),
    "torchrec_tw_fp32_gloo": Entry(_torchrec(False), "TorchRec table-wise, gloo's all-to-all", BASE),
    "flat_fp32": Entry(_ours(towers=_NONE, comm={"route": "flat"}), "flat route of this project"),
    "sptt_fp32": Entry(_ours(towers=_NONE), "SPTT", "flat_fp32", 1e-6),
    "dmt_cr2_fp32": Entry(_compressed(2), "DMT, CR 2"),
    "dmt_cr4_fp32": Entry(_compressed(4), "DMT, CR 4"),
    "dmt_cr8_fp32": Entry(_compressed(8), "DMT, CR 8"),
    "dmt_cr4_fp16": Entry(_compressed(4, peer_dtype="fp16"), "DMT, CR 4, fp16 between hosts", "dmt_cr4_fp32", 1e-2),
    "dmt_cr4_int8": Entry(_compressed(4, peer_dtype="int8"), "DMT, CR 4, int8 between hosts", "dmt_cr4_fp32", 3e-2),
}

QUICK = (BASE, "flat_fp32", "sptt_fp32", "dmt_cr4_fp32")
