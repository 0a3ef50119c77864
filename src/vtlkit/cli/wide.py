"""Tables on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import RenderableType


WIDE: Final = 160
"""Columns of a table in a file or a pipe."""


def print_wide(*parts: RenderableType) -> None:
    """Print texts and tables; a file or a pipe gets whole lines, however long."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False)
    for part in parts:
        console.print(part)
