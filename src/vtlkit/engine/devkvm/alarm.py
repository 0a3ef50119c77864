"""A signal to one thread after a while: the kernel's per-process timers with SIGEV_THREAD_ID (timer_create(2))."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from vtlkit.engine.devkvm import syscalls

_CLOCK_MONOTONIC: Final = 1
_SIGEV_THREAD_ID: Final = 4
SI_TIMER: Final = -2
"""`si_code` of such a signal."""
_SIGEVENT: Final = struct.Struct("<QiiI44x")
"""`struct sigevent`: value, signal, how, thread."""
_ITIMERSPEC: Final = struct.Struct("<qqqq")
"""Interval and first expiry, each in seconds and nanoseconds."""
_NS_PER_S: Final = 1_000_000_000


class ThreadAlarm:
    """Belongs to the thread that it is for."""

    def __init__(self, thread: int, signal: int) -> None:
        """`thread`: as the kernel numbers it.

        Raises:
            OSError: the kernel has no timer left.
        """
        self.thread = thread
        number = ctypes.c_int()
        syscalls.timer_create(_CLOCK_MONOTONIC, _SIGEVENT.pack(0, signal, _SIGEV_THREAD_ID, thread), number)
        self._number = number.value

    def set(self, after_ns: int) -> None:
        """Ring once, `after_ns` from now; 0: not at all."""
        syscalls.timer_settime(self._number, _ITIMERSPEC.pack(0, 0, *divmod(after_ns, _NS_PER_S)))

    def close(self) -> None:
        """Give the timer back."""
        syscalls.timer_delete(self._number)
