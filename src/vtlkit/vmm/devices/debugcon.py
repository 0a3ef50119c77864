"""The Bochs/QEMU debug console (hw/char/debugcon.c): bytes written to port 0xE9 go to a sink.

Promise: bytes reach the sink in order, none dropped; a read gives 0xE9, by which guests detect the device. Called under
the bus's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

DEBUGCON_PORT: Final = 0xE9
_READBACK: Final = 0xE9


class DebugConsole:
    """Register at DEBUGCON_PORT for one port; a wider access writes its low byte only."""

    __slots__ = ("_sink",)

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink

    def read(self, port: int, size: int) -> int:
        return _READBACK

    def write(self, port: int, size: int, value: int) -> None:
        self._sink(bytes((value & 0xFF,)))
