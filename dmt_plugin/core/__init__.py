"""What every room uses and no room owns: errors and findings, sizes, versions, the user's own functions."""
