"""The guest's serial port as the program's standard output: bytes as they come, nothing added.

A reader that is slow is waited for, until the run is asked to stop: then what it does not take is dropped, so that a
full pipe cannot keep a run from ending. A reader that has gone ends the run.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import Final

_CHUNK: Final = 512
"""POSIX's least PIPE_BUF: what a pipe that polls as writable takes without blocking."""
_LOOK_UP_MS: Final = 50
"""How often a writer that waits for its reader looks whether the run is being stopped."""


class GuestOutput:
    """Writes what the guest prints to a file descriptor.

    `on_failure` is called once, when the descriptor takes no more; `error` then says why.
    """

    def __init__(self, descriptor: int, on_failure: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_failure = on_failure
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self.error: OSError | None = None
        self.stopping = False
        """Set (by a signal handler, say) when the run is to end: nothing is waited for from then on."""
        self.at_line_start = True

    @property
    def reader_gone(self) -> bool:
        """Whether the output failed because nobody reads it any more."""
        return self.error is not None and self.error.errno == errno.EPIPE

    def write(self, data: bytes) -> None:
        """Write all of `data`; drop it if the output has failed, or would have to be waited for by a run that stops."""
        view = memoryview(data)
        while view and self.error is None:
            if not self._writable():
                return
            try:
                written = os.write(self._descriptor, view[:_CHUNK])
            except BlockingIOError:
                continue
            except OSError as error:
                self.error = error
                self._on_failure()
                return
            self.at_line_start = view[written - 1] == 0x0A
            view = view[written:]

    def _writable(self) -> bool:
        while not self._poll.poll(_LOOK_UP_MS):
            if self.stopping:
                return False
        return True
