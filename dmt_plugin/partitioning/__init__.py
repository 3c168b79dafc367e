"""From a model and its data to affinities and a partition: what ``dmt partition`` does, as functions."""
