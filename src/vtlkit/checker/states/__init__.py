"""Search over states: every state of a program under SC or TSO, breadth first (docs/design/checker.md)."""
