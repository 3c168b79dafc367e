"""``dmt report``: the records of a run, read back and shown."""
