"""What a user hands to ``initialize``: read, checked, refused by name."""
