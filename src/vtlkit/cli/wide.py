"""Tables on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_wide(*parts: RenderableType) -> None:
    """Print texts and tables; a file or a pipe gets whole lines, however long."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    for part in parts:
        console.print(part)
