"""What can go wrong with an emulated cluster."""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The cluster is not what was asked for, or a command on it failed."""


class ClusterUnavailable(ClusterError):
    """This machine or user cannot have an emulated cluster; the text says what is missing."""
