"""Lookup and pooling of the tables that one rank owns, on FBGEMM or plain PyTorch."""

from dmt_plugin.nn.lookup.sharded import ShardedLookup

__all__ = ["ShardedLookup"]
