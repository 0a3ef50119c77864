"""`python -m vtlkit` is the `vtlkit` program."""

from __future__ import annotations

import sys

from vtlkit.cli.start import start

if __name__ == "__main__":
    sys.exit(start())
