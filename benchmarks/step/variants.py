"""The variants by name, and which have to train alike.

Variants of one ``model`` compute the same: in every step the same loss, and in the end the same change of every table,
within ``losses`` and ``tables``. fp32 differs by rounding alone; a wire format's bounds are wide enough for what it
rounds away, and far too narrow for a table, a tower or a scale that is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.step.protocols import Variant
from benchmarks.step.setting import Setting

Kind = Literal["torchrec", "torchrec_vbe", "torchrec_tower", "ours"]


@dataclass(frozen=True)
class Entry:
    """How to make a variant.

    Attributes:
        make: from the setting.
        text: what it is, for people.
        kind: whose.
        precision: on the wire.
        model: what it computes: ``"flat"``, or the compression of its towers such as ``"cr4"``.
        losses: how far its losses may be from those of the same model, relative.
        tables: how far the change of a table may be, relative to its norm.
        transport: form of its all-to-all: ``"messages"`` or ``"gloo"``.
        without: the variant that differs in nothing but sending every row, where this one sends distinct ones; or in
            checking gradients, where this one does not.
    """

    make: Callable[[Setting], Variant]
    text: str
    kind: Kind
    precision: str
    model: str
    losses: float = 1e-5
    tables: float = 1e-5
    transport: str = "messages"
    without: str | None = None


_BOUNDS = {"fp32": (1e-5, 1e-5), "fp16": (2e-5, 0.1), "int8": (3e-4, 0.4)}
"""Of losses and tables, by precision on the wire: about ten and two times what rounding does.

Gradients of a mean loss lie below fp16's normal range, and int8 leaves a row's small ones as nothing; a table that is
another one is 1.4 away.
"""

_TOWER_BOUNDS = {**_BOUNDS, "int8": (3e-4, 0.8)}
"""Of TorchRec's towers by hand, whose int8 holds inside a host too, where whole rows arrive: on ids that repeat, small
tables that every sample reads end up to 0.55 away (seen at CR 2, 4 and 8, with equal losses)."""

_RATIOS = (2, 4, 8)
_PRECISIONS = ("fp32", "fp16", "int8")

_SHARDINGS = {
    "tw": "table-wise",
    "cw": "column-wise",
    "twrw": "table-row-wise",
    "rw": "row-wise",
    "planner": "its planner's choice, nothing replicated",
    "planner_dp_cpu": "its planner's choice, CPU costs",
    "planner_dp_cuda": "its planner's choice, GPU costs",
}

ABSENT = {
    **{
        f"torchrec_{sharding}_int8": (
            "TorchRec cannot: its int8 codec stops in the reduce-scatter of rows (quantize_comm.py: no row_dim)"
        )
        for sharding in ("rw", "twrw")
    },
    **{
        f"torchrec_2d_{layout}_fp32": (
            f"TorchRec's DMPCollection, {words}: its constructor ends in \"DMPCollection only supports CUDA or MTIA\", "
            "and without that line the plan that it makes for its groups names blocks on `cpu:0`, which "
            "ShardedTensor refuses next to tables on `cpu`"
        )
        for layout, words in {
            "across": "sharding groups across hosts, replicas inside a host",
            "inside": "sharding groups inside a host, replicas across hosts",
        }.items()
    },
}
"""What nobody can measure, and why: said in the tables beside what can."""


def _ours(kind: str, **section: Any) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.ours import OursVariant

        towers: dict[str, Any] = {"module": "none"}
        if kind.startswith("cr"):
            towers = {"module": "dlrm", "c": 1, "p": 0, "dim": setting.width // int(kind[2:])}
        return OursVariant(setting, {"towers": towers, **section})

    return make


def _flat(sharding: str, precision: str, messages: bool = True) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.torchrec_flat import flat_trainer

        return flat_trainer(setting, sharding, precision, messages)

    return make


def _pipelined(precision: str) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.torchrec_flat import pipelined_trainer

        return pipelined_trainer(setting, precision)

    return make


def _tower(ratio: int, precision: str, pipelined: bool = False) -> Callable[[Setting], Variant]:
    def make(setting: Setting) -> Variant:
        from benchmarks.step.torchrec_tower import tower_trainer

        return tower_trainer(setting, ratio, precision, pipelined)

    return make


def base_of(precision: str) -> str:
    """What every ``ratio`` of a wire precision is to."""
    return f"torchrec_tw_{precision}"


BASE = base_of("fp32")


def _all() -> dict[str, Entry]:
    found = {
        "flat_fp32": Entry(_ours("none", comm={"route": "flat"}), "this project, flat route", "ours", "fp32", "flat"),
    }
    for precision in _PRECISIONS:
        for sharding, words in _SHARDINGS.items():
            if (name := f"torchrec_{sharding}_{precision}") not in ABSENT:
                make, text = _flat(sharding, precision), f"TorchRec, {words}"
                found[name] = Entry(make, text, "torchrec", precision, "flat", *_BOUNDS[precision])
        found[f"torchrec_pipelined_{precision}"] = Entry(
            _pipelined(precision), "TorchRec, table-wise, pipelined", "torchrec", precision, "flat", *_BOUNDS[precision]
        )
    found["torchrec_vbe_fp32"] = Entry(
        _flat("vbe", "fp32"), "TorchRec, variable batches of distinct ids", "torchrec_vbe", "fp32", "flat"
    )
    found[f"{BASE}_gloo"] = Entry(
        _flat("tw", "fp32", False), "TorchRec, table-wise, gloo's own all-to-all", "torchrec", "fp32", "flat",
        transport="gloo",
    )  # fmt: skip
    for precision in _PRECISIONS:
        for ratio in _RATIOS:
            found[f"torchrec_tower_cr{ratio}_{precision}"] = Entry(
                _tower(ratio, precision), f"TorchRec, towers by hand, CR {ratio}", "torchrec_tower", precision,
                f"cr{ratio}", *_TOWER_BOUNDS[precision],
            )  # fmt: skip
        # Where a bar is to a tower, TorchRec has its pipeline there too.
        found[f"torchrec_tower_pipelined_cr4_{precision}"] = Entry(
            _tower(4, precision, True), "TorchRec, towers by hand, CR 4, pipelined", "torchrec_tower", precision,
            "cr4", *_TOWER_BOUNDS[precision],
        )  # fmt: skip
    three: dict[str, Any] = {"micro_blocks": 3}
    found["sptt_fp32"] = Entry(_ours("none"), "SPTT", "ours", "fp32", "flat", losses=1e-6)
    found["sptt_unchecked_fp32"] = Entry(
        _ours("none", lookup={"check_finite": False}), "SPTT, gradients not checked", "ours", "fp32", "flat",
        losses=1e-6, without="sptt_fp32",
    )  # fmt: skip
    for precision in ("fp16", "int8"):
        found[f"sptt_{precision}"] = Entry(
            _ours("none", comm={"peer_dtype": precision}), "SPTT", "ours", precision, "flat", *_BOUNDS[precision]
        )
    found["sptt_fp32_blocks3"] = Entry(
        _ours("none", comm=three), "SPTT, 3 micro-blocks", "ours", "fp32", "flat", losses=1e-6
    )
    for precision in _PRECISIONS:
        found[f"sptt_dedup_{precision}"] = Entry(
            _ours("none", comm={"dedup": "on", "peer_dtype": precision}), "SPTT, distinct rows once", "ours", precision,
            "flat", *_BOUNDS[precision], without=f"sptt_{precision}",
        )  # fmt: skip
    for ratio in _RATIOS:
        found[f"dmt_cr{ratio}_dedup_fp32"] = Entry(
            _ours(f"cr{ratio}", comm={"dedup": "on"}), f"DMT, CR {ratio}, distinct rows once", "ours", "fp32",
            f"cr{ratio}", without=f"dmt_cr{ratio}_fp32",
        )  # fmt: skip
    found["flat_dedup_fp32"] = Entry(
        _ours("none", comm={"dedup": "on", "route": "flat"}), "flat route, distinct rows once per rank", "ours", "fp32",
        "flat", without="flat_fp32",
    )  # fmt: skip
    for precision in _PRECISIONS:
        for ratio in _RATIOS:
            found[f"dmt_cr{ratio}_{precision}"] = Entry(
                _ours(f"cr{ratio}", comm={"peer_dtype": precision}), f"DMT, CR {ratio}", "ours", precision,
                f"cr{ratio}", *_BOUNDS[precision],
            )  # fmt: skip
    for ratio in (2, 4):
        found[f"dmt_cr{ratio}_fp32_blocks3"] = Entry(
            _ours(f"cr{ratio}", comm=three), f"DMT, CR {ratio}, 3 micro-blocks", "ours", "fp32", f"cr{ratio}"
        )
    return found


VARIANTS = _all()
