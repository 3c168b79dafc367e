"""Passes that make one rank's graph from the logical one."""
