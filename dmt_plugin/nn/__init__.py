"""What a tower model is made of: tower modules, lookups, and the few functions its graph calls."""
