"""Where towers and tables go: towers to hosts, tables to the lanes of their host; and what a step then costs."""

from dmt_plugin.planner.placement import PlacementRules, TablePlacement, place_tables, towers_to_hosts

__all__ = ["PlacementRules", "TablePlacement", "place_tables", "towers_to_hosts"]
