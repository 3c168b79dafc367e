"""The tower partitioner: which feature belongs to which tower."""

from dmt_plugin.partitioner.strategies import partition_features

__all__ = ["partition_features"]
