"""Where tables go inside a tower, and what a plan costs."""

from dmt_plugin.planner.placement import place_tables, towers_to_hosts

__all__ = ["place_tables", "towers_to_hosts"]
