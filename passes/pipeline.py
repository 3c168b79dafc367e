"""The lists of passes, as data."""

from __future__ import annotations

from dmt_plugin.passes.base import GraphPass
from dmt_plugin.passes.dissolve_collections import DissolveCollections
from dmt_plugin.passes.find_joins import FindJoins
from dmt_plugin.passes.find_lookups import FindLookups
from dmt_plugin.passes.find_regions import FindRegions
from dmt_plugin.passes.insert_tower_modules import InsertTowerModules
from dmt_plugin.passes.insert_towers import InsertTowers
from dmt_plugin.passes.partition_features import PartitionFeatures
from dmt_plugin.passes.pick_pairs import PickPairs
from dmt_plugin.passes.read_marks import ReadMarks
from dmt_plugin.passes.repair_shapes import RepairShapes
from dmt_plugin.passes.split_joint_tables import SplitJointTables


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
