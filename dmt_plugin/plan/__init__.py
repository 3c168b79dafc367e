"""The tower plan: which feature belongs to which tower, which host runs it, which lanes hold each table."""
