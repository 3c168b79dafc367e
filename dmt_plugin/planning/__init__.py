"""Plans for clusters that nobody has yet: models as what they compute and send."""
