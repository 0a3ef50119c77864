"""Guest message buffers: how many messages of one port may wait in queues (TLFS, "Guest Message Buffers").

Promise: no more messages than there are buffers wait at any time, and after `close` none comes to wait any more once
every SynIC has been asked to drop those that do (`SynIc.drop_messages`).

Shared by every task that posts or receives. `_free` changes by compare-and-exchange. `closed` is stored before the
first SynIC's lock is taken to drop messages, and read by posters under that lock: see docs/design/ports.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtlkit.host.api import Host


class MessageBuffers:
    """A set of buffers."""

    __slots__ = ("_closed", "_free")

    def __init__(self, host: Host, count: int, name: str) -> None:
        self._free = host.cell(count, f"{name}-free")
        self._closed = host.cell(False, f"{name}-closed")

    @property
    def free(self) -> int:
        """How many are not in use."""
        return self._free.load()

    @property
    def closed(self) -> bool:
        return self._closed.load()

    def close(self) -> None:
        """No buffer is taken any more by those who look afterwards."""
        self._closed.store(True)

    def take(self) -> bool:
        """Take a buffer; False if none is free."""
        while True:
            free = self._free.load()
            if not free:
                return False
            if self._free.cmpxchg(free, free - 1) == free:
                return True

    def give(self, count: int = 1) -> None:
        """Give buffers back."""
        self._free.fetch_add(count)
