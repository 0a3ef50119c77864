"""Nested guests: a guest that runs a guest of its own (docs/design/nested.md)."""
