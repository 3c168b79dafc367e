"""Distinct rows once: every row of a table that a host's samples need crosses to that host a single time per step."""
