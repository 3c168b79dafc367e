"""Collectives of a tower-decomposed model: functional, differentiable, with no knowledge of models."""
