"""The rows of `vtlkit bench`, for the harness: exits, VTL switches, interrupts, start-up, growth."""

from __future__ import annotations

from vtlkit.cli.bench_cases import cases

__all__ = ["cases"]
