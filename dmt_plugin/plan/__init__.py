"""The tower plan: which feature belongs to which tower, which host runs it, which lanes hold each table."""

from dmt_plugin.plan.tables import TableSpec
from dmt_plugin.plan.tower_plan import FeatureSpec, GroupSpec, TowerModuleSpec, TowerPlan

__all__ = ["FeatureSpec", "GroupSpec", "TableSpec", "TowerModuleSpec", "TowerPlan"]
