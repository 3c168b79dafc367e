"""The "dmt" section of a DeepSpeed configuration."""
