"""The "towers" part of the "dmt" section: number and kind of towers, and the towers that differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from dmt_plugin.config.base import CountOrAuto, Outputs, Section, Seed, WidthOrAuto
from dmt_plugin.config.messages import one_of
from dmt_plugin.core.limits import MOST_TOWERS, TOWER_MODULES, is_own_module
from dmt_plugin.core.words import shown

Init = Literal["orthogonal", "identity", "torch"]


def _known_module(value: str) -> str:
    if value not in TOWER_MODULES and not is_own_module(value):
        raise ValueError(f'{one_of(value, TOWER_MODULES)} or "pkg.mod:Class" for a module of your own')
    return value


class TowerOverride(Section):
    """What is different about one tower; a key that is left out is as in dmt.towers."""

    module: Annotated[str, AfterValidator(_known_module)] | None = Field(
        default=None, description='Tower module of this tower: "dlrm", "dcn" or "pkg.mod:Class".'
    )
    c: Outputs | None = Field(default=None, description='Outputs of width D per feature ("dlrm").')
    p: Outputs | None = Field(default=None, description='Outputs of width D of the whole tower ("dlrm").')
    rank: WidthOrAuto | None = Field(default=None, description='Rank of its cross layer ("dcn").')
    outputs: WidthOrAuto | None = Field(default=None, description='Outputs of width D of the whole tower ("dcn").')
    init: Init | None = Field(default=None, description="How its linear layers start.")
    seed: Seed | None = Field(default=None, description="Seed of that initialisation.")

    @model_validator(mode="before")
    @classmethod
    def _one_width(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "dim" in data:
            raise ValueError(
                "dim cannot differ between towers, because the streams of one join have one width; set dmt.towers.dim"
            )
        return data

    @field_validator("module")
    @classmethod
    def _some_module(cls, value: str | None) -> str | None:
        if value == "none":
            raise ValueError(
                '"none" is for all towers or for no tower; a tower module that starts as its input is "preserve" '
                'with "init": "identity"'
            )
        return value


class TowersConfig(Section):
    """Number and kind of towers. c, p and D (dim) are the paper's letters."""

    count: CountOrAuto = Field(default="auto", description='Number of towers T; "auto" is one per host.')
    module: Annotated[str, AfterValidator(_known_module)] = Field(
        default="dlrm",
        description='Tower module: "dlrm", "dcn", "preserve" (keeps number and width of the features, and the layers '
        'behind), "none" (the same numbers by another route), or "pkg.mod:Class", an nn.Module of your own.',
    )
    c: Outputs = Field(default=1, description='Outputs of width D per feature ("dlrm").')
    p: Outputs = Field(default=0, description='Outputs of width D per tower as a whole ("dlrm").')
    dim: WidthOrAuto = Field(default="auto", description="Width D of a tower module's outputs.")
    rank: WidthOrAuto = Field(default="auto", description='Rank of the cross layer ("dcn"); "auto" is a full matrix.')
    outputs: WidthOrAuto = Field(
        default="auto", description='Outputs of width D per tower as a whole ("dcn"); "auto" is one per feature.'
    )
    init: Init = Field(
        default="orthogonal",
        description='How the linear layers of tower modules start; "torch" is nn.Linear\'s default.',
    )
    seed: Seed = Field(default=0, description="Seed of that initialisation, the same on every rank.")
    compile: bool = Field(
        default=False,
        description="Run tower modules through torch.compile, which takes a while at the first steps; for modules of "
        "many small operations. On a CPU those of this project gain nothing.",
    )
    overrides: dict[str, TowerOverride] = Field(
        default_factory=dict,
        description='Towers that differ, by number: {"1": {"module": "dcn"}}; keys module, c, p, rank, outputs, init, '
        "seed.",
    )

    @field_validator("overrides")
    @classmethod
    def _tower_numbers(cls, value: dict[str, TowerOverride]) -> dict[str, TowerOverride]:
        for key in value:
            number = int(key) if key.isdecimal() and len(key) <= len(str(MOST_TOWERS)) else MOST_TOWERS
            if number >= MOST_TOWERS or str(number) != key:
                raise ValueError(f'the key {shown(key)} is no tower; expected the number of one, "0" or above')
        return value

    @model_validator(mode="after")
    def _some_output(self) -> TowersConfig:
        if self.module == "preserve" and self.dim != "auto":
            raise ValueError(
                f'"dim": {self.dim} would not be read with "module": "preserve", which keeps each width; remove it'
            )
        if self.module == "none" and self.compile:
            raise ValueError('"compile": true would not be read with "module": "none"; remove it')
        towers = {"": self, **{f".overrides.{key}": self.of_tower(int(key)) for key in self.overrides}}
        crossed = [where for where, tower in towers.items() if tower.module == "dcn"]
        for key in ("rank", "outputs"):
            if getattr(self, key) != "auto" and not crossed:
                raise ValueError(
                    f'"{key}": {getattr(self, key)} would not be read, because no tower has "module": "dcn"; remove it'
                )
            for where in towers.keys() - {"", *crossed}:
                if key in self.overrides[where.rpartition(".")[2]].model_fields_set:
                    raise ValueError(
                        f'dmt.towers{where}: {key} would not be read with "module": "{towers[where].module}"; remove it'
                    )
        for where, tower in towers.items():
            if tower.module == "dlrm" and tower.c == 0 and tower.p == 0:
                raise ValueError(
                    f'dmt.towers{where}: c = 0 and p = 0 leave a "dlrm" tower without outputs; set c or p to at least '
                    "1" + (', or "module": "none"' if not where else "")
                )
        for key, override in self.overrides.items():
            place, given = f"dmt.towers.overrides.{key}", override.model_dump(exclude_none=True)
            if self.count != "auto" and int(key) >= self.count:
                raise ValueError(f"{place}: there are {self.count} towers, 0 to {self.count - 1}")
            if self.module == "none":
                raise ValueError(f'{place} would not be read with "module": "none"; remove it or choose a module')
            unread = sorted({"module", "c", "p", "rank", "outputs"} & given.keys())
            if self.module == "preserve" and unread:
                raise ValueError(
                    f'{place}: {", ".join(unread)} would not fit "module": "preserve", where every tower keeps its '
                    "features; only init and seed can differ"
                )
        return self

    def of_tower(self, tower: int) -> TowersConfig:
        """What holds for one tower, its override applied."""
        override = self.overrides.get(str(tower))
        return self if override is None else self.model_copy(update=override.model_dump(exclude_none=True))
