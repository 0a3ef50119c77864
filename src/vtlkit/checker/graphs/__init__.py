"""Exhaustive search over execution graphs (docs/design/checker-graphs.md)."""
