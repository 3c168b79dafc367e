"""Compares two checkouts of this project: what they promise, what they make of every model, how fast a step is."""
