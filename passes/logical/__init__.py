"""Passes on the logical graph: from the captured model to the tower model that runs in one process."""
