"""What `vtlkit bench` measures: vtlkit's own side (`guest_loops`, `whole_process`) and, apart from it, its rivals.

`cases` is the table of promises. A promise on speed is a limit on time: 0.9 of a rival's speed is at most 1/0.9 of its
time. Rows without a limit are reports.
"""

from vtlkit.cli.bench_cases.table import cases

__all__ = ["cases"]
