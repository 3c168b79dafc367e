"""A cluster as numbers, each with its source: presets, files and probes; and how fast exchanges are on it."""
