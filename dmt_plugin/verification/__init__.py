"""The laws of the transformation, checked on a user's own model and batch."""
