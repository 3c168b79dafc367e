"""Features in known blocks, as the benchmark plants them."""

from benchmarks.planted import labels, made, names_of, planted, planted_rows, specs

__all__ = ["labels", "made", "names_of", "planted", "planted_rows", "specs"]
