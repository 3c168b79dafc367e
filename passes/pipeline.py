"""The compiler's three lists of passes, in the order in which they run; a pass that is in no list never runs.

1. :func:`towers_passes`: from a captured model to the same model with pass-through towers.
2. :func:`modules_passes`: from pass-through towers to tower modules.
3. :func:`rank_passes`: from a tower model to the graph of one rank.
"""

from __future__ import annotations

from dmt_plugin.passes.base import GraphPass
from dmt_plugin.passes.logical.count_rows import CountRows
from dmt_plugin.passes.logical.dissolve_collections import DissolveCollections
from dmt_plugin.passes.logical.find_joins import FindJoins
from dmt_plugin.passes.logical.find_lookups import FindLookups
from dmt_plugin.passes.logical.find_regions import FindRegions
from dmt_plugin.passes.logical.flatten_joins import FlattenJoins
from dmt_plugin.passes.logical.insert_tower_modules import InsertTowerModules
from dmt_plugin.passes.logical.insert_towers import InsertTowers
from dmt_plugin.passes.logical.leave_out_lookups import LeaveOutLookups
from dmt_plugin.passes.logical.make_tower_plan import MakeTowerPlan
from dmt_plugin.passes.logical.pick_pairs import PickPairs
from dmt_plugin.passes.logical.read_marks import ReadMarks
from dmt_plugin.passes.logical.repair_shapes import RepairShapes
from dmt_plugin.passes.logical.spell_regroups import SpellRegroups
from dmt_plugin.passes.logical.split_joint_tables import SplitJointTables
from dmt_plugin.passes.logical.undo_cuts import UndoCuts
from dmt_plugin.passes.rank.compile_towers import CompileTowers
from dmt_plugin.passes.rank.faster_dot import FasterDot
from dmt_plugin.passes.rank.feed_towers import FeedTowers
from dmt_plugin.passes.rank.place import Place
from dmt_plugin.passes.rank.remove_pass_through import RemovePassThrough
from dmt_plugin.passes.rank.schedule import Schedule
from dmt_plugin.passes.rank.split_blocks import SplitBlocks
from dmt_plugin.passes.rank.towers_first import TowersFirst


def towers_passes() -> list[GraphPass]:
    """From a captured model to the same model with pass-through towers."""
    return [
        DissolveCollections(),
        ReadMarks(),
        SplitJointTables(),
        SpellRegroups(),
        UndoCuts(),
        FlattenJoins(),
        LeaveOutLookups(),
        FindLookups(),
        FindRegions(),
        PickPairs(),
        FindJoins(),
        CountRows(),
        MakeTowerPlan(),
        InsertTowers(),
    ]


def modules_passes() -> list[GraphPass]:
    """From pass-through towers to compressing tower modules."""
    return [InsertTowerModules(), RepairShapes()]


KNOWN_OF_A_RANK = frozenset({"regions", "plan"})
"""What holds before :func:`rank_passes`: the facts and the plan of the tower model."""


def rank_passes() -> list[GraphPass]:
    """From a tower model, its facts and its plan to the graph of one rank."""
    return [
        RemovePassThrough(),
        Place(),
        FeedTowers(),
        TowersFirst(),
        SplitBlocks(),
        FasterDot(),
        CompileTowers(),
        Schedule(),
    ]
