"""The "placement" part of the "dmt" section: how tables are placed on the lanes of their host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from dmt_plugin.config.base import PositiveInt, Section
from dmt_plugin.config.messages import one_of
from dmt_plugin.core.limits import LARGEST
from dmt_plugin.core.sizes import parse_bytes
from dmt_plugin.core.words import shown

PlacementKind = Literal["table_wise", "row_wise", "column_wise"]

_KINDS = ("table_wise", "row_wise", "column_wise")


class PlacementConfig(Section):
    """How tables are placed on the lanes of their host."""

    strategy: Literal["auto", "table_wise", "row_wise", "column_wise"] = Field(
        default="auto",
        description='"table_wise": whole tables; "row_wise", "column_wise": every table divided over the lanes; '
        '"auto": whole tables, and by rows those that are too large for a rank or too much for one lane.',
    )
    memory_per_rank: PositiveInt | str = Field(
        default="auto",
        description='Bytes that tables and their optimizer state may take on a rank, or a size such as "16GiB"; "auto" '
        "sets no limit.",
    )
    split_gain: float = Field(
        default=1.5,
        ge=1,
        le=LARGEST,
        description='With "auto", a table is divided for balance where this lowers the predicted cost of the host\'s '
        "most expensive lane by at least this factor.",
    )
    overrides: dict[str, PlacementKind] = Field(default={}, description="Tables that are placed in a way of their own.")

    @field_validator("memory_per_rank")
    @classmethod
    def _a_size(cls, value: int | str) -> int | str:
        if isinstance(value, str) and value != "auto":
            try:
                parse_bytes(value)
            except ValueError as error:
                raise ValueError(f'dmt.placement.memory_per_rank: {error}, a number of bytes, or "auto"') from None
        return value

    @field_validator("overrides", mode="before")
    @classmethod
    def _known_kinds(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(
                f'dmt.placement.overrides: found {shown(value)}, expected an object such as {{"users": "row_wise"}}'
            )
        for table, kind in value.items():
            if kind not in _KINDS:
                raise ValueError(f"dmt.placement.overrides.{table}: {one_of(kind, _KINDS)}")
        return value

    @property
    def memory_limit(self) -> int | None:
        """Bytes per rank; ``None`` for no limit."""
        if isinstance(self.memory_per_rank, int):
            return self.memory_per_rank
        return None if self.memory_per_rank == "auto" else parse_bytes(self.memory_per_rank)
