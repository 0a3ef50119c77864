"""A descriptor that tells select, poll, epoll or an event loop of a vCPU's wake events (`Vcpu.fileno`).

An eventfd, or a pipe where there are none. It is readable at least while a wake event is pending:

* a sender rings it after it has stored the event, so it is readable when `kick` has returned;
* whoever looks empties it first, looks, and fills it again if an event is there (`Vcpu.wake_event_pending`), so what
  comes after the look is readable too, and it stays readable for as long as the event is pending.

It may be readable without an event: after a kick that was about something else (a masked interrupt, UNBLOCK, a signal),
after an event that has been taken back, and from its creation until the first look. The look tells.

Ringing never blocks and takes no lock: it may be done in interrupt context.
"""

from __future__ import annotations

import io
import os

_ONE = (1).to_bytes(8, "little")
"""What an eventfd wants to be written; eight bytes to a pipe."""


class Pollable:
    """See the module. File objects, not numbers: one who rings late meets a closed file and not a stranger's."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._reader = self._writer = io.FileIO(fd, "r+b")
        else:
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            os.set_blocking(writer, False)
            self._reader, self._writer = io.FileIO(reader, "rb"), io.FileIO(writer, "wb")

    def fileno(self) -> int:
        return self._reader.fileno()

    def ring(self) -> None:
        """Make it readable. From any task and interrupt."""
        try:
            self._writer.write(_ONE)
        except ValueError:
            # The vCPU has been destroyed: nobody waits for it.
            assert self._writer.closed

    def silence(self) -> None:
        """Make it unreadable."""
        while self._reader.read(4096):
            if self._reader is self._writer:
                # One read takes all of an eventfd.
                return

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
