"""``dmt partition``: a partition as tables, page and pictures."""
