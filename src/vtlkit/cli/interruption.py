"""Signals while a guest runs: Ctrl-C, SIGTERM and the time limit become one clean stop of the machine.

A Python signal handler may run anywhere in the main thread, also inside a callback out of translated code, which no
exception can leave. So the handler only notes the signal and asks the machine to stop; a second Ctrl-C or SIGTERM ends
the process on the spot, for the case that the first did not get through.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

from vtlkit.cli.status import Status

_STATUS: Final = {
    signal.SIGINT: Status.INTERRUPTED,
    signal.SIGTERM: Status.TERMINATED,
    signal.SIGALRM: Status.TIMEOUT,
}
_REASON: Final = {signal.SIGINT: "interrupted", signal.SIGTERM: "interrupted", signal.SIGALRM: "timeout"}
"""What `Machine.stop` is told."""


class Interruption:
    """A context in which signals, and the end of `timeout` seconds of wall-clock time, call `stop(reason)`.

    For the main thread only, as signals are.
    """

    def __init__(self, stop: Callable[[str], None], timeout: float | None) -> None:
        self._stop = stop
        self._timeout = timeout
        self._before: dict[int, Any] = {}
        self._asked = False
        self.cause: signal.Signals | None = None
        """The first signal that arrived."""

    @property
    def status(self) -> int | None:
        """The exit status that the signal asks for."""
        return None if self.cause is None else _STATUS[self.cause]

    def __enter__(self) -> Interruption:
        for number in _STATUS:
            # A shell starts background jobs with SIGINT ignored: such a run is not the one that Ctrl-C is meant for.
            if number is signal.SIGALRM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        if self._timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, self._timeout)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is not signal.SIGALRM:
            if self._asked:
                os._exit(_STATUS[received])
            self._asked = True
        if self.cause is None:
            self.cause = received
        self._stop(_REASON[received])
