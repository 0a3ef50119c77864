"""The Linux kernel's C litmus tests: read, and judged under LKMM, SC, TSO or RC11 (docs/design/litmus.md)."""
