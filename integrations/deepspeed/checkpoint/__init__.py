"""Checkpoints of a tower-decomposed model under DeepSpeed."""
