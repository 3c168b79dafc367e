"""Tower models: the logical one, which runs whole in one process, and the placed one, the part that one rank runs."""
