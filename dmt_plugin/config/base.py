"""What every part of the "dmt" section has in common: strictness, and types that several parts use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
IntOrAuto = PositiveInt | Literal["auto"]


class Section(BaseModel):
    """An object of the "dmt" section: unknown keys are errors, numbers are not made of strings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
