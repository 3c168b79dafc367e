"""The campaign: faults of every kind, each of which must be taken rightly or refused by name; see ``__main__``."""
