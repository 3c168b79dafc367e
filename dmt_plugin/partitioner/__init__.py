"""The tower partitioner: which feature belongs to which tower."""

from dmt_plugin.partitioner.affinity import Affinity
from dmt_plugin.partitioner.cosine import cosine_from_tables
from dmt_plugin.partitioner.files import partition_features
from dmt_plugin.partitioner.information import mutual_information
from dmt_plugin.partitioner.partition import Partition, make_partition

__all__ = ["Affinity", "Partition", "cosine_from_tables", "make_partition", "mutual_information", "partition_features"]
