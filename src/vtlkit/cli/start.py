"""Where the `vtlkit` program starts: Ctrl-C while the rest is still being imported is one line and status 130, too."""

from __future__ import annotations

import sys

_INTERRUPTED = 130
"""`Status.INTERRUPTED`, before that can be imported."""


def start() -> int:
    """Import the program and run it; returns the exit status."""
    try:
        from vtlkit.cli.main import main

        return main()
    except KeyboardInterrupt:
        print("vtlkit: interrupted", file=sys.stderr)
        return _INTERRUPTED
