"""``dmt doctor``: whether this machine, or these ranks, can train with towers; what users paste into issues."""
