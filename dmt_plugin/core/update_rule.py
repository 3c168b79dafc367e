"""How the rows of a table are kept and updated by their gradients: the rules, what each keeps, and its options.

Only rows that a batch looks up are updated, as torch's ``SparseAdam`` does it: a row that is not looked up keeps still,
in its values and in what the rule keeps for it. A dense rule of torch goes on moving it where it has momentum or decay.

Here are numbers only; :mod:`dmt_plugin.nn.lookup.updates` computes with them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

RuleName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam", "lamb"]
RULES: tuple[RuleName, ...] = get_args(RuleName)

WeightType = Literal["fp32", "bf16", "fp16"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
BYTES_OF: dict[WeightType, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of an entry of a table. What a rule keeps is always fp32."""

_STATES: dict[str, dict[str, Literal["row", "entry"]]] = {
    "sgd": {},
    "adagrad": {"sum": "entry"},
    "rowwise_adagrad": {"sum": "row"},
    "adam": {"exp_avg": "entry", "exp_avg_sq": "entry"},
    "partial_rowwise_adam": {"exp_avg": "entry", "exp_avg_sq": "row"},
    "lamb": {"exp_avg": "entry", "exp_avg_sq": "entry"},
}
_ADAGRAD, _ADAM = ("adagrad", "rowwise_adagrad"), ("adam", "partial_rowwise_adam", "lamb")

#: The rules that know an option; any rule knows the others.
KNOWN_BY: dict[str, tuple[str, ...]] = {
    "eps": (*_ADAGRAD, *_ADAM),
    "betas": _ADAM,
    "momentum": ("sgd",),
    "nesterov": ("sgd",),
    "initial_accumulator_value": _ADAGRAD,
    "trust_ratio": ("lamb",),
}


@dataclass(frozen=True)
class Rule:
    """The update rule of a table, with ``g`` the gradient of a row (the mean over all ranks) and ``w`` its values.

    | name | update |
    |---|---|
    | ``sgd`` | ``w -= lr * g``; with momentum ``b = momentum * b + g``, then ``w -= lr * b`` |
    | ``adagrad`` | ``s += g ** 2``, ``w -= lr * g / (sqrt(s) + eps)`` |
    | ``rowwise_adagrad`` | the same with ``s`` one number per row, which adds up the mean of ``g ** 2`` |
    | ``adam`` | torch's ``Adam``; steps are those in which the table was looked up |
    | ``partial_rowwise_adam`` | the same with one second moment per row, of the mean of ``g ** 2`` |
    | ``lamb`` | Adam's direction times the row's trust ratio, ``|w| / |direction|`` |

    An update is computed in fp32, and rounded once, when the row is written.

    Attributes:
        name: one of ``RULES``.
        lr: learning rate.
        eps: added to the denominator.
        betas: how much of Adam's moments stays in a step.
        momentum: how much of SGD's momentum stays in a step.
        nesterov: SGD's momentum is looked ahead.
        weight_decay: shrinks a row in each step that looks it up.
        decoupled: the row shrinks by ``lr * weight_decay`` (AdamW), else ``weight_decay * w`` is added to ``g`` (L2).
        initial_accumulator_value: what Adagrad's ``s`` begins with.
        trust_ratio: least and largest trust ratio of Lamb.
        clip_value: entries of ``g`` are cut at this size first; None: they are not.
        clip_norm: rows of ``g`` whose norm is larger are scaled to this norm first; None: they are not.
        group: parameter group of the dense optimizer whose learning rate is this rule's; None: the rule has its own.
        dtype: type that the rows are kept in.
        stochastic_rounding: rows of 16 bits are rounded up or down by chance, so that the mean is right; else to the
            nearest number, by which updates of less than half a step of the type are lost.
        frozen: the table is never updated, whatever the rest says; nothing is kept for it.
    """

    name: RuleName
    lr: float
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False
    initial_accumulator_value: float = 0.0
    trust_ratio: tuple[float, float] = (0.01, 10.0)
    clip_value: float | None = None
    clip_norm: float | None = None
    group: int | None = None
    dtype: WeightType = "fp32"
    stochastic_rounding: bool = False
    frozen: bool = False

    @property
    def states(self) -> dict[str, Literal["row", "entry"]]:
        """What is kept, by its name: one number per row or per entry."""
        if self.name == "sgd" and self.momentum:
            return {"momentum_buffer": "entry"}
        return dict(_STATES[self.name])

    @property
    def counts_steps(self) -> bool:
        """Whether an update depends on how many there were before: by its rule, or by the chance of its rounding."""
        return self.name in _ADAM or self.stochastic_rounding

    @property
    def said(self) -> str:
        """Its name, as checkpoints and messages have it."""
        return "frozen" if self.frozen else self.name

    @property
    def mixes_columns(self) -> str:
        """Why columns of a row cannot be updated apart; empty if they can."""
        whole = {
            "rowwise_adagrad": "takes the mean of squares over a whole row",
            "partial_rowwise_adam": "takes the mean of squares over a whole row",
            "lamb": "takes the norm of a whole row",
        }
        if self.name in whole:
            return f"{self.name} {whole[self.name]}"
        return "clip_norm takes the norm of a whole row" if self.clip_norm is not None else ""

    @property
    def plain(self) -> bool:
        """Whether it is SGD or an Adagrad without momentum, decay and clipping."""
        more = self.momentum or self.weight_decay or self.clip_value is not None or self.clip_norm is not None
        return self.name in ("sgd", *_ADAGRAD) and not more

    def state_entries(self, columns: int) -> int:
        """Numbers that are kept per row of so many columns."""
        return sum(1 if kind == "row" else columns for kind in self.states.values())

    def __str__(self) -> str:
        """Name, rate and what is not at its default, e.g. ``adam, lr 0.001, weight_decay 0.1 (decoupled), bf16``."""
        if self.frozen:
            return self.said
        said = [self.name, f"lr {self.lr:g}"]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name in ("decoupled", "group", "dtype", "stochastic_rounding") or value == field.default:
                continue
            how = f" ({'decoupled' if self.decoupled else 'L2'})" if field.name == "weight_decay" else ""
            said.append(f"{field.name} {value}{how}")
        if self.dtype != "fp32":
            said.append(f"{self.dtype} rounded {'stochastically' if self.stochastic_rounding else 'to nearest'}")
        return ", ".join(said)


#: That of a table that is frozen from the start: by name one that keeps nothing and can be divided anyhow.
FROZEN = Rule("sgd", 0.0, frozen=True)

#: What tables are planned with, and trained with where there is no DeepSpeed, if nothing says how.
ASSUMED = Rule("rowwise_adagrad", 0.01)
