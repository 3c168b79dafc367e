"""Input distribution: every rank's ids travel to the ranks that own the tables."""
