"""What every part of the "dmt" section has in common: strictness, and types that several parts use.

A value that no run could have (a path with a NUL, a width that no tensor has) is an error here, where its key is known.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dmt_plugin.core.limits import LARGEST, MOST, MOST_TOWERS, SMALLEST, WIDEST, fault_of_path


def check_path(value: str) -> str:
    """The same path.

    Raises:
        ValueError: no file can have it.
    """
    if fault := fault_of_path(value):
        raise ValueError(f"found a path {fault}")
    return value


PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST_TOWERS)]
"""Of towers, of hosts, of ranks on a host."""
Width = Annotated[int, Field(ge=1, le=WIDEST)]
Outputs = Annotated[int, Field(ge=0, le=WIDEST)]
Seed = Annotated[int, Field(ge=0, le=MOST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]
CountOrAuto = Count | Literal["auto"]
WidthOrAuto = Width | Literal["auto"]
FilePath = Annotated[str, AfterValidator(check_path)]


class Section(BaseModel):
    """An object of the "dmt" section: unknown keys are errors, numbers are not made of strings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
