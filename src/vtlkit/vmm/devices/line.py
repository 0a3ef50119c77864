"""An interrupt line whose level is a function of its device's state, driven from tasks and from timer callbacks.

Promise: once every change of the state was followed by `update()`, the line has the level that the state asks for. No
lock is taken, because a timer callback must not block; the race and why it ends well:

    task (guest acknowledges)          timer callback (event occurs)
    -------------------------          -----------------------------
                                       level() -> True
    clears the status bit
    level() -> False; irq(0)
                                       irq(1)          <- stale, line wrongly high
    level() -> False: done             level() -> False: differs, irq(0); level() -> False: done

Whoever calls `irq` last looks at the state after it and found it equal to what it drove.
"""

from __future__ import annotations

from collections.abc import Callable

Irq = Callable[[int], None]
"""Sets an interrupt line's level, 0 or 1. Where a timer drives the line it is called in interrupt context."""


class LevelLine:
    """Drives `irq` to `level()`."""

    __slots__ = ("_irq", "_level")

    def __init__(self, irq: Irq, level: Callable[[], bool]) -> None:
        self._irq = irq
        self._level = level

    def update(self) -> None:
        """Drive the line to the present level. Never blocks if `irq` does not."""
        level = self._level()
        while True:
            self._irq(1 if level else 0)
            now = self._level()
            if now == level:
                return
            level = now
