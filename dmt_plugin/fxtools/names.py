"""Names in rewritten graphs: paths of modules that are not the user's, and the keys of node meta.

Whoever puts a module of ours into a graph builds its path here, and whoever meets a path takes it apart here:

* ``dmt_towers.<group>.tower<t>`` is the module of tower ``t`` in a group of features, ``decoder<t>`` its decoder;
* ``dmt_exchange.<name>.start`` and ``.wait`` are the two ends of an exchange between ranks;
* ``dmt_lookup`` holds a rank's share of the tables.

Notes on nodes are plain data under the keys below, so that they survive copying and pickling of a graph.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import fx

TOWERS = "dmt_towers"
"""Where tower modules and decoders live in a rewritten model."""
EXCHANGES = "dmt_exchange"
"""Where the exchanges live in the graph of a rank."""
LOOKUP = "dmt_lookup"
"""The sharded lookup in the graph of a rank."""
INDEX = "index"
"""The exchange of ids for rows that travel once per sample."""
REQUESTS = "requests"
"""The exchange of requests for distinct rows."""
DISTINCT = "rows"
"""How the exchanges of distinct rows begin, by group of tables: ``rows0.peers``, ``rows0.lanes``, ``rows0.world``."""

MUTATED = "dmt_mutated"
"""While a model is traced: the example values of the inputs that the node changed in place."""
SOURCE = "dmt_source"
"""While a model is traced: the line of the user's code that made the node."""
WITHOUT_GRADIENT = "dmt_without_gradient"
"""While a model is traced: set where the node was recorded under ``torch.no_grad()``."""
GROUP = "dmt_group"
"""Of the node that splits tower outputs into streams: name of the group."""
SEED = "dmt_stream"
"""Of a stream behind a tower module: ``(group, old number of streams, old width, new width)``."""
SEED_VALUE = "dmt_stream_value"
"""Of a stream behind a tower module: its example value; the old one stays under ``"val"``."""
SCATTERED = "dmt_streams_scattered"
"""Of a join: whether new streams do not stand where the old ones stood among the other parts."""
EXCHANGE_META = "dmt_exchange"
"""Of a start or wait node: name of the exchange."""
BLOCK_META = "dmt_block"
"""Which micro-block a node belongs to, where a batch is cut into several."""
BY_ID_META = "dmt_rows_by_id"
"""Of a node: set where it gives a row for each id, of which samples have any number."""
SHAPE_META = "dmt_shape_text"
"""The shape in the letters of the design, where rows are of several ranks."""

_TOWER_PART = re.compile(rf"{TOWERS}\.([^.]+)\.(tower|decoder)(\d+)(?:\.(.+))?")


class TowerPart(NamedTuple):
    """What a path below :data:`TOWERS` says.

    Attributes:
        group: name of the group of features.
        kind: ``"tower"`` or ``"decoder"``.
        number: of the tower.
        inside: path within the module; empty for the module itself.
    """

    group: str
    kind: str
    number: int
    inside: str


def tower_path(group: str, tower: int) -> str:
    """Qualified name of the module of one tower in one group."""
    return f"{TOWERS}.{group}.tower{tower}"


def decoder_path(group: str, tower: int) -> str:
    """Qualified name of the decoder of one tower in one group."""
    return f"{TOWERS}.{group}.decoder{tower}"


def tower_part(path: str) -> TowerPart | None:
    """The tower or decoder that a module or parameter is, or lies in; ``None`` for anything of the user's."""
    found = _TOWER_PART.fullmatch(path)
    return None if found is None else TowerPart(found[1], found[2], int(found[3]), found[4] or "")


def tower_number(path: str) -> int | None:
    """Number of the tower that a module is; ``None`` if it is something else."""
    part = tower_part(path)
    return part.number if part is not None and part.kind == "tower" and not part.inside else None


def calls_tower(node: fx.Node) -> bool:
    """Whether a node calls the module of a tower."""
    return node.op == "call_module" and tower_number(str(node.target)) is not None


def start_path(exchange: str) -> str:
    """Qualified name of what starts an exchange."""
    return f"{EXCHANGES}.{exchange}.start"


def wait_path(exchange: str) -> str:
    """Qualified name of what waits for an exchange."""
    return f"{EXCHANGES}.{exchange}.wait"


def carries_ids(node: fx.Node) -> bool:
    """Whether a node belongs to an exchange that needs ids only, and can run before the batch is there."""
    return node.meta.get(EXCHANGE_META) in (INDEX, REQUESTS)


def carries_samples(node: fx.Node) -> bool:
    """Whether a node belongs to an exchange of rows with one row per sample."""
    name = str(node.meta.get(EXCHANGE_META, INDEX))
    return name not in (INDEX, REQUESTS) and not name.startswith(DISTINCT)


def crosses_hosts(node: fx.Node) -> bool:
    """Whether a node belongs to an exchange of rows between hosts, or between all machines."""
    return str(node.meta.get(EXCHANGE_META, "")).rpartition(".")[2] in ("peers", "world", "machine_peers")


def hands_rows(node: fx.Node) -> bool:
    """Whether a node spreads distinct rows to lanes, or expands them to samples."""
    path = str(node.target)
    return path.startswith(f"{EXCHANGES}.{DISTINCT}") and path.endswith((".spread", ".expand"))


def is_start(node: fx.Node) -> bool:
    """Whether a node starts an exchange."""
    return EXCHANGE_META in node.meta and node.target == start_path(node.meta[EXCHANGE_META])


def is_wait(node: fx.Node) -> bool:
    """Whether a node waits for an exchange."""
    return EXCHANGE_META in node.meta and node.target == wait_path(node.meta[EXCHANGE_META])
