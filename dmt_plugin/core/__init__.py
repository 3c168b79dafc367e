"""Shared by all packages: errors and findings, sizes, files, versions, equality of values, the user's own functions."""
