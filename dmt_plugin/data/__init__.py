"""Batches: an iterator that looks one batch ahead, so that its ids travel early."""

from dmt_plugin.data.prefetched import PrefetchedLoader, prefetched

__all__ = ["PrefetchedLoader", "prefetched"]
