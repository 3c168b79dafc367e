"""The lists of passes, as data."""

from __future__ import annotations

from dmt_plugin.passes.base import GraphPass
from dmt_plugin.passes.logical.dissolve_collections import DissolveCollections
from dmt_plugin.passes.logical.find_joins import FindJoins
from dmt_plugin.passes.logical.find_lookups import FindLookups
from dmt_plugin.passes.logical.find_regions import FindRegions
from dmt_plugin.passes.logical.insert_tower_modules import InsertTowerModules
from dmt_plugin.passes.logical.insert_towers import InsertTowers
from dmt_plugin.passes.logical.partition_features import PartitionFeatures
from dmt_plugin.passes.logical.pick_pairs import PickPairs
from dmt_plugin.passes.logical.read_marks import ReadMarks
from dmt_plugin.passes.logical.repair_shapes import RepairShapes
from dmt_plugin.passes.logical.split_joint_tables import SplitJointTables


def towers_passes() -> list[GraphPass]:
    """From a captured model to the same model with pass-through towers."""
    return [
        DissolveCollections(),
        ReadMarks(),
        SplitJointTables(),
        FindLookups(),
        FindRegions(),
        PickPairs(),
        FindJoins(),
        PartitionFeatures(),
        InsertTowers(),
    ]


def modules_passes() -> list[GraphPass]:
    """From pass-through towers to compressing tower modules."""
    return [InsertTowerModules(), RepairShapes()]
