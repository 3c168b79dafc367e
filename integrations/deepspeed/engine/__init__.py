"""The DeepSpeed engine of one rank of a tower-decomposed model."""
