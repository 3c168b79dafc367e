"""Sources of tables that are on the meta device: by the user's function, the recorded rule, or the rule of the layer.

1. A function of the user's makes the rows of all tables on meta.
2. Without one, a table goes by what was recorded in :func:`~dmt_plugin.tables.recording.tables_on_meta`.
3. A table of torchrec's goes by its configuration's ``init_fn``, which has a default.
4. A table of a model that was built whole on meta goes by the rule of its layer, and a line says so; or, where that is
   not enough, it is an error. A layer of another kind has no known rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from dmt_plugin.core.errors import TableInitError
from dmt_plugin.tables.recording import LAYERS, record, rule_of
from dmt_plugin.tables.rules import Rectangle, Step, TableRule
from dmt_plugin.tables.sources import CallableSource, RowSource, RuleSource, TableInit


def meta_sources(
    model: nn.Module,
    parameters: Iterable[str],
    *,
    seed: int,
    table_init: TableInit | None = None,
    strict: bool = False,
) -> tuple[dict[str, RowSource], list[str]]:
    """Where the rows of tables on meta come from.

    Args:
        model: the user's model.
        parameters: names of its parameters that are tables on meta.
        seed: of the random numbers.
        table_init: makes the rows of all of them.
        strict: the rule of a layer is not enough.

    Returns:
        Sources by parameter; and a line for each table that goes by the rule of its layer.

    Raises:
        TableInitError: a table has no rule.
    """
    sources: dict[str, RowSource] = {}
    lines: list[str] = []
    for name in parameters:
        weight = model.get_parameter(name)
        rows, dim = weight.shape
        if table_init is not None:
            sources[name] = CallableSource(table_init, seed, name, (rows, dim))
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        rule = rule_of(weight, owner, name)
        if rule is None or (isinstance(owner, LAYERS) and rule == _of_layer(owner, rows, dim)):
            rule = _by_torchrec(model, name) or rule  # a collection does not initialise what it finds on meta
        if rule is None:
            rule = _by_layer(owner, name, rows, dim, strict)
            lines.append(
                f"{name} was built on meta without a rule of its own: its rows are those of a new "
                f"{type(owner).__name__}, {rule} (build it inside dmt_plugin.tables_on_meta() to keep the model's own)"
            )
        sources[name] = RuleSource(rule, seed, name)
    return sources, lines


def _by_torchrec(model: nn.Module, name: str) -> TableRule | None:
    """The rule of a table in a collection of torchrec's, by its configuration; torchrec itself is not imported."""
    path = name.split(".")
    for end in range(len(path) - 1, -1, -1):
        module = model.get_submodule(".".join(path[:end]))
        if not any(c.__module__.startswith("torchrec.") for c in type(module).__mro__):
            continue
        for call in ("embedding_bag_configs", "embedding_configs"):
            configs: list[Any] = getattr(module, call)() if hasattr(module, call) else []
            for config in configs:
                if config.name in path[end:]:
                    init = config.init_fn
                    return record(config.num_embeddings, config.embedding_dim, init, f"init_fn of table {config.name}")
    return None


def _by_layer(owner: nn.Module, name: str, rows: int, dim: int, strict: bool) -> TableRule:
    known = isinstance(owner, LAYERS) and type(owner).reset_parameters in [c.reset_parameters for c in LAYERS]
    if strict or not known:
        unknown = f"and a {type(owner).__name__} has no rule that is known"
        why = 'and "table_init": "strict" asks for one' if known else unknown
        raise TableInitError(
            f"table {name} is on meta without a rule for its rows, {why}. Build the model inside "
            "dmt_plugin.tables_on_meta(), or give table_init= a function that makes rows"
        )
    return _of_layer(owner, rows, dim)


def _of_layer(owner: nn.Module, rows: int, dim: int) -> TableRule:
    """What torch's embedding layers do to a new weight."""
    whole = Rectangle.whole(rows, dim)
    rule = TableRule(rows, dim, (Step("normal", (0.0, 1.0), whole),))
    padding = getattr(owner, "padding_idx", None)
    if padding is not None:
        rule = rule.then(Step("constant", (0.0,), Rectangle(padding, padding + 1, 1, 0, dim)))
    return rule
