"""The wire: how bytes travel between ranks, in which formats, how many, and what is said when they do not arrive."""
