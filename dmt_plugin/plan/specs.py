"""What a tower plan is written in: its features, the groups in which they meet, and what tower modules are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GROUP_KINDS = ("tower", "transport")
FORMS = ("native", "decoder", "preserve")


@dataclass(frozen=True)
class FeatureSpec:
    """One feature: an index input of the model and every table it is looked up in.

    Attributes:
        name: unique name.
        tables: names of the tables, in order of use.
        hotness: ids per sample if fixed, else ``None``.
    """

    name: str
    tables: tuple[str, ...]
    hotness: int | None = None


@dataclass(frozen=True)
class GroupSpec:
    """Streams that are joined together in the model.

    Attributes:
        name: ``group0``, ``group1``, ...
        kind: ``"tower"`` (goes through tower modules) or ``"transport"`` (moved as it is).
        width: width of one stream in a tower group; 0 in a transport group of mixed widths.
        features: names of the features, in the model's order.
        form: what the model behind a tower group sees: ``"native"`` (the outputs themselves, its
            sizes adapted), ``"decoder"`` (streams of the old shapes, made from the outputs by a
            linear decoder) or ``"preserve"`` (outputs of the old shapes).
        dim: width ``D`` of its towers' outputs; 0 where the plan's module says it.
        parameters: qualified names of the model's parameters that are applied to one feature alone (a bias behind its
            lookup) before its vector enters the tower module.
    """

    name: str
    kind: str
    width: int
    features: tuple[str, ...]
    form: str = "native"
    dim: int = 0
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class TowerModuleSpec:
    """What a tower module is made of; the letters are those of the paper's section 4.

    Attributes:
        kind: ``"dlrm"``, ``"dcn"``, ``"preserve"``, ``"none"`` or an import path of a user's module.
        c: outputs per feature (dlrm).
        p: outputs of the whole tower (dlrm).
        dim: width ``D`` of each output.
        init: initialisation, see :mod:`dmt_plugin.nn.towers`.
        seed: seed of the initialisation.
        rank: rank of the cross layer (dcn); 0: full.
        outputs: outputs of the whole tower (dcn); 0: one per feature.
    """

    kind: str = "none"
    c: int = 1
    p: int = 0
    dim: int = 0
    init: str = "orthogonal"
    seed: int = 0
    rank: int = 0
    outputs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain data; what later versions added only where it is set: plans keep their fingerprint."""
        return {key: value for key, value in vars(self).items() if value or key not in ("rank", "outputs")}
