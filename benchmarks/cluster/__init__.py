"""A cluster on one machine: network namespaces as hosts, shaped links between them, loopback inside."""

from benchmarks.cluster.cluster import Cluster
from benchmarks.cluster.errors import ClusterError, ClusterUnavailable

__all__ = ["Cluster", "ClusterError", "ClusterUnavailable"]
