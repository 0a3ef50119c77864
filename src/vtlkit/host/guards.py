"""Context managers of reader/writer semaphores: `with sem.reading():`. Each semaphore makes its two once."""

from __future__ import annotations

from contextlib import AbstractContextManager

from vtlkit.host.api import RwSem


class ReadGuard(AbstractContextManager[None]):
    """Has no state of its own, so that one serves every reader."""

    __slots__ = ("_sem",)

    def __init__(self, sem: RwSem) -> None:
        self._sem = sem

    def __enter__(self) -> None:
        self._sem.down_read()

    def __exit__(self, *exc: object) -> None:
        self._sem.up_read()


class WriteGuard(AbstractContextManager[None]):
    """As `ReadGuard`, for writing."""

    __slots__ = ("_sem",)

    def __init__(self, sem: RwSem) -> None:
        self._sem = sem

    def __enter__(self) -> None:
        self._sem.down_write()

    def __exit__(self, *exc: object) -> None:
        self._sem.up_write()
