"""Where tables go inside a host, and what a plan costs."""

from dmt_plugin.planner.placement import PlacementRules, TablePlacement, place_tables, towers_to_hosts

__all__ = ["PlacementRules", "TablePlacement", "place_tables", "towers_to_hosts"]
