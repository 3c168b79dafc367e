"""Tower models: the logical one that runs in one process, and the placed one that a rank runs."""
