"""Measured comparisons on an emulated cluster; nothing here is installed with the package."""
