"""The "dmt" section of a DeepSpeed configuration: its keys, their defaults and the refusal of everything else.

1. ``load_ds_config`` (:mod:`.source`) reads what ``deepspeed.initialize(config=...)`` would take.
2. ``read_dmt_config`` looks for top-level keys that were meant to be "dmt", then validates the section with the
   models below, and turns everything pydantic found into one short message with full key paths.
3. A key or a value that this version does not have is refused, never ignored.

Neither torch nor deepspeed is imported here: the command line must start fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from dmt_plugin.comm.formats import Format, FormatOrAuto, gradient_format
from dmt_plugin.config.base import Count, CountOrAuto, FilePath, NotNegative, Section, check_path
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.dense_rules import of_settings
from dmt_plugin.config.lookup import LookupConfig
from dmt_plugin.config.messages import near_miss, refuse, say_problems
from dmt_plugin.config.placement import PlacementConfig
from dmt_plugin.config.source import load_ds_config as load_ds_config
from dmt_plugin.config.towers import TowersConfig
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.json_text import check_levels
from dmt_plugin.core.limits import MOST, MOST_TOWERS
from dmt_plugin.core.sizes import parse_rate
from dmt_plugin.core.words import shown


class TopologyConfig(Section):
    """Hosts and ranks; "auto" asks the launcher."""

    hosts: CountOrAuto = Field(default="auto", description="Number of hosts H.")
    ranks_per_host: CountOrAuto = Field(default="auto", description="Ranks on each host L; rank = host * L + lane.")
    machines_per_host: Count = Field(
        default=1,
        description="Neighbouring machines that are one host together: each tower lies over all machines of its host. "
        'With "auto" for the two above, a launcher\'s machines are put together by so many.',
    )


class CostConfig(Section):
    """What a feature costs its tower, when towers are balanced by cost: shares of the whole model, weighted."""

    bytes: NotNegative = Field(default=1.0, description="Weight of the memory of a feature's tables.")
    lookups: NotNegative = Field(default=1.0, description="Weight of the rows it reads per sample.")
    width: NotNegative = Field(default=1.0, description="Weight of the entries it gives per sample.")


class PartitionConfig(Section):
    """Which feature belongs to which tower."""

    strategy: Literal["strided", "contiguous", "file", "learned", "graph", "random", "greedy_balance"] = Field(
        default="strided",
        description='"strided": feature i to tower i mod T; "contiguous": in runs; "file": as written; "learned": by '
        'affinity; "graph", "random", "greedy_balance": baselines to compare it with.',
    )
    file: FilePath | None = Field(default=None, description='Path of the tower plan when strategy is "file".')
    affinity: FilePath | None = Field(
        default=None, description='Affinity file for "learned" and "graph" (dmt partition).'
    )
    objective: Literal["coherent", "diverse", "mutual_information", "auto"] = Field(
        default="coherent",
        description="What a learned partition looks for: like features together, or apart; like ones by mutual "
        'information; "auto": coherent or diverse, whichever the plane shows with less stress.',
    )
    balance: Literal["count", "cost"] = Field(
        default="count", description="What is kept equal between towers: features, or their cost."
    )
    bound: Annotated[float, Field(ge=1, le=MOST_TOWERS)] | Literal["auto"] = Field(
        default="auto",
        description='Largest tower to smallest ("count"; "auto" is as even as it goes), or heaviest tower to the fair '
        'share ("cost"; "auto" is 1.1).',
    )
    cost: CostConfig = Field(default=CostConfig(), description="Weights of a feature's cost.")
    pin: dict[str, Annotated[int, Field(ge=0, lt=MOST_TOWERS)]] = Field(
        default={}, description="Features that must be in a certain tower."
    )
    together: list[list[str]] = Field(default=[], description="Lists of features that share a tower.")
    apart: list[list[str]] = Field(default=[], description="Lists of features no two of which share a tower.")
    groups: dict[str, list[str]] = Field(
        default={}, description="Groups of features; a tower holds features of one group only."
    )
    method: Literal["refined", "paper"] = Field(
        default="refined",
        description='"paper": clusters in the plane of the affinities as they are; "refined": stretched, and improved '
        "by swaps on the affinities themselves.",
    )
    dimensions: int = Field(
        default=2, ge=1, le=1024, description="Dimensions of the space that features are laid out in."
    )
    restarts: int = Field(
        default=8, ge=1, le=10_000, description="Starting points of layout and clusters; the best is taken."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the starting points.")

    @model_validator(mode="after")
    def _keys_that_are_read(self) -> PartitionConfig:
        if self.strategy == "file" and not self.file:
            raise ValueError('"strategy": "file" needs the path of a plan in dmt.partition.file')
        for key, readers in _READ_BY.items():
            value = getattr(self, key)
            if self.strategy not in readers and value != type(self).model_fields[key].default:
                shown = value if isinstance(value, str) else json.dumps(value, default=dict)
                raise ValueError(
                    f'dmt.partition.{key} = "{shown}" would not be read with "strategy": "{self.strategy}"; set '
                    f'"strategy": "{readers[0]}" or remove the key'
                )
        return self


_BALANCED = ("learned", "graph", "random", "greedy_balance")
_READ_BY: dict[str, tuple[str, ...]] = {
    "file": ("file",),
    "affinity": ("learned", "graph"),
    **dict.fromkeys(("objective", "method", "dimensions", "restarts"), ("learned",)),
    "seed": ("learned", "graph", "random"),
    **dict.fromkeys(("balance", "bound", "cost", "pin", "together", "apart", "groups"), _BALANCED),
}


Dedup = Literal["auto", "on", "off"]
"""Whether rows travel once, however many samples need them."""


class CommConfig(Section):
    """How rows and ids travel."""

    route: Literal["hierarchical", "flat"] = Field(
        default="hierarchical", description='"flat" is one global all-to-all over the same sharded tables.'
    )
    peer_dtype: Format = Field(
        default="fp32",
        description='Wire format of rows between hosts: "fp32", "bf16", "fp16", or "int8" with a scale for every '
        "64 columns of a row. On the flat route it holds for the one exchange.",
    )
    intra_dtype: Format = Field(default="fp32", description="Wire format of rows inside a host.")
    peer_grad_dtype: FormatOrAuto = Field(
        default="auto", description='Wire format of gradients between hosts; "auto": peer_dtype, but "bf16" for "fp16".'
    )
    intra_grad_dtype: FormatOrAuto = Field(
        default="auto",
        description='Wire format of gradients inside a host; "auto": intra_dtype, but "bf16" for "fp16".',
    )
    dedup: Dedup = Field(
        default="auto",
        description='"on": every row that a batch needs crosses to a host once, however many of its samples need it, '
        "and the host's gradients for it are summed before they leave; per rank on the flat route. Features that tower "
        "modules mix keep their way, but where it is fewer bytes to run these modules where the samples are. "
        '"auto": on for the features whose rows repeat in real batches, as far as these were counted.',
    )
    dedup_features: dict[str, Dedup] = Field(
        default={}, description='The same for single features, by name or pattern ("item*"); the last that fits holds.'
    )
    dedup_shares: FilePath | None = Field(
        default=None,
        description="Path of a file with the distinct rows that were counted on real batches (dmt explain --data, dmt "
        "partition --data), which tables are dealt out by and dedup is decided by.",
    )
    link: Annotated[float, Field(ge=1, le=1e18)] | str | None = Field(
        default=None,
        description='How fast the link of a host is, for "auto": "100 Mbit/s", "25 GB/s", a number of bytes per '
        'second, or the path of a file of "dmt doctor --json". null: a share of distinct rows decides.',
    )
    overlap: bool = Field(default=True, description="Let the dense part run while exchanges are under way.")
    micro_blocks: Literal["auto"] | Annotated[int, Field(ge=1, le=16)] = Field(
        default="auto",
        description="Parts a batch is cut into, so that the exchange of one runs while another is computed; a model "
        'part that mixes samples still sees the whole batch. "auto": 2 between hosts with overlap, else 1.',
    )
    prefetch: bool = Field(
        default=True,
        description="Distribute the next batch's ids while this one is computed, where batches come from "
        "dmt_plugin.data.prefetched or are announced by engine.prefetch.",
    )
    timeout_s: float = Field(
        default=300.0, ge=0.1, le=86_400, description="Seconds until a stuck exchange becomes an error."
    )

    @field_validator("link")
    @classmethod
    def _a_rate(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, str) and value.endswith(".json"):
            check_path(value)
        elif isinstance(value, str):
            parse_rate(value)
        return value

    def dedup_of(self, feature: str) -> Dedup:
        """Whether the rows of a feature are to travel once, however many samples need them."""
        named = self.named_dedup_of(feature)
        return self.dedup if named is None else named

    def named_dedup_of(self, feature: str) -> Dedup | None:
        """What ``dedup_features`` says of a feature; None where it says nothing."""
        found = [value for name, value in self.dedup_features.items() if name == feature or fnmatchcase(feature, name)]
        return found[-1] if found else None

    def may_travel_once(self, hosts: int, world_size: int) -> bool:
        """Whether the rows of any feature may travel once in a run of so many hosts and ranks."""
        crossing = world_size > 1 if self.route == "flat" else hosts > 1
        return crossing and (self.dedup != "off" or any(value != "off" for value in self.dedup_features.values()))

    def blocks_on(self, hosts: int) -> int:
        """Parts that a batch is cut into on so many hosts."""
        if self.micro_blocks == "auto":
            return 2 if self.overlap and hosts > 1 else 1
        return self.micro_blocks

    def formats_of(
        self, group: Literal["peers", "lanes", "world", "machine_peers", "machine_lanes"]
    ) -> tuple[Format, Format]:
        """Wire formats, forward and backward, of the output distribution in a group; "world" crosses hosts."""
        if group in ("lanes", "machine_lanes"):
            return self.intra_dtype, gradient_format(self.intra_dtype, self.intra_grad_dtype)
        return self.peer_dtype, gradient_format(self.peer_dtype, self.peer_grad_dtype)


class TransformConfig(Section):
    """How strict the rewrite is."""

    on_unsupported: Literal["error", "transport", "decoder", "preserve"] = Field(
        default="error",
        description="Where the layers behind a group of features cannot take other streams: refuse; move its rows "
        'untouched ("transport"); compress them, and give the old streams back behind the exchange ("decoder"); or use '
        'tower modules that keep number and width ("preserve").',
    )
    verify: bool = Field(
        default=True, description="Compare the rewritten model with the original on the example batch."
    )
    faster_dot: bool = Field(
        default=True,
        description="Dot products of pairs of features with one batched product in backward, not two; outputs are "
        "the same, gradients are added up in another order.",
    )
    example_batch: FilePath | None = Field(
        default=None, description='Where an example batch comes from: "path/to/file.py:factory" or "pkg.mod:factory".'
    )

    @field_validator("example_batch")
    @classmethod
    def _a_factory(cls, value: str | None) -> str | None:
        if value is not None:
            place, colon, name = value.rpartition(":")
            if not (place and colon and name.isidentifier()):
                raise ValueError(f'found "{value}", expected "path/to/file.py:factory" or "pkg.mod:factory"')
        return value


class ReportConfig(Section):
    """What is written for people."""

    dir: FilePath | None = Field(
        default=None, description="Folder for plan.json, transform.json and each rank's records of the run; null: none."
    )
    every: int = Field(
        default=10,
        ge=0,
        le=MOST,
        description="Steps between two records of the run, in the folder and in DeepSpeed's monitors; 0: none.",
    )


class CheckpointConfig(Section):
    """How checkpoints are saved, and what a load takes."""

    asynchronous: bool = Field(
        default=False,
        description="engine.save_checkpoint only copies what this rank saves into host memory; it is written and "
        "committed behind the steps that follow. Its argument asynchronous= goes before this key.",
    )
    run_id: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the run, the same when it is started again: on another machine it then takes over the "
        "folder of its checkpoints at once. null: torchrun's --rdzv-id or Slurm's job, if there is one.",
    )
    lock_stale_s: float = Field(
        default=300.0,
        ge=10.0,
        le=86_400.0,
        description="Seconds without a sign of life after which another run may save into a run's folder.",
    )
    classes: list[str] = Field(
        default=[],
        description='Your classes, as "package.module:Class" or "path/to/file.py:Class", whose objects client_state '
        "and the states of registered objects hold. A load makes objects of no other class.",
    )

    @field_validator("classes")
    @classmethod
    def _classes(cls, value: list[str]) -> list[str]:
        for spec in value:
            place, colon, name = spec.rpartition(":")
            if not (place and colon and name.isidentifier()):
                raise ValueError(f'found "{spec}", expected "package.module:Class" or "path/to/file.py:Class"')
        return value


class DMTConfig(Section):
    """The "dmt" section. Every key has a default that serves."""

    enabled: bool = Field(default=True, description="false leaves model and engine untouched.")
    topology: TopologyConfig = Field(default=TopologyConfig(), description="Hosts x ranks per host.")
    towers: TowersConfig = Field(default=TowersConfig(), description="Towers and their modules.")
    partition: PartitionConfig = Field(default=PartitionConfig(), description="Features to towers.")
    placement: PlacementConfig = Field(default=PlacementConfig(), description="Tables to the lanes of their host.")
    lookup: LookupConfig = Field(default=LookupConfig(), description="Embedding lookup and its optimizer.")
    comm: CommConfig = Field(default=CommConfig(), description="Exchanges.")
    transform: TransformConfig = Field(default=TransformConfig(), description="The rewrite of the model.")
    report: ReportConfig = Field(default=ReportConfig(), description="Reports.")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="Checkpoints.")

    def shape_without_launcher(
        self, hosts: int | None = None, ranks_per_host: int | None = None
    ) -> tuple[int, int, int]:
        """Hosts, ranks on each, and machines of each, where no process is started that could be asked.

        As given; else this section's numbers; else one host per tower, or 2, with one rank per machine.
        """
        towers = 2 if self.towers.count == "auto" else self.towers.count
        found_hosts = hosts or (towers if self.topology.hosts == "auto" else self.topology.hosts)
        machines = self.topology.machines_per_host
        lanes = machines if self.topology.ranks_per_host == "auto" else self.topology.ranks_per_host
        return int(found_hosts), int(ranks_per_host or lanes), machines


def read_dmt_config(ds_config: Mapping[str, Any], source: str = "config") -> DMTConfig | None:
    """Validate the "dmt" section of a DeepSpeed configuration.

    Args:
        ds_config: The whole configuration.
        source: Name of the file, for messages.

    Returns:
        The section, or None where there is none or ``"enabled"`` is false.

    Raises:
        ConfigError: One message naming every unknown key, bad value and impossible combination.
    """
    try:
        check_levels(ds_config)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    for key in ds_config:
        if near_miss(key):
            raise ConfigError(f'{source}: the top-level key "{key}" looks like a misspelt "dmt"; rename it')
    if "dmt" not in ds_config:
        return None
    section = ds_config["dmt"]
    if not isinstance(section, Mapping):
        refuse(source, [f'dmt: must be an object such as {{"enabled": true}}, found {shown(section)}'])
    try:
        config = DMTConfig.model_validate(dict(section))
    except ValidationError as error:
        refuse(source, say_problems(error, DMTConfig))
    lookup = config.lookup.trained_as(of_settings(DeepSpeedSettings(ds_config)))
    return config.model_copy(update={"lookup": lookup}) if config.enabled else None
