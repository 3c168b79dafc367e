"""The tower partitioner: which feature belongs to which tower."""

from dmt_plugin.partitioner.affinity import Affinity
from dmt_plugin.partitioner.files import partition_features
from dmt_plugin.partitioner.partition import Partition, make_partition

__all__ = ["Affinity", "Partition", "make_partition", "partition_features"]
