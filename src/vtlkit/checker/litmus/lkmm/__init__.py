"""The Linux-kernel memory model, as axioms over candidate executions (docs/design/litmus.md)."""
