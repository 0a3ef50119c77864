"""Real time and the timers on it. Counterpart: kernel/time/hrtimer.c. The one module that imports `time`.

Promise: one thread per host fires what is due, in the order of deadlines, ties in the order in which they were started.
Callbacks run on that thread, one at a time, in interrupt context. `cancel` waits for a callback that has begun.
Everything here is protected by `TimerThread._changed`; callbacks run without it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush

from vtlkit.host.api import Timer

NS_PER_S = 1_000_000_000


class MonotonicClock:
    """Nanoseconds since it was made."""

    __slots__ = ("_start",)

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    def now_ns(self) -> int:
        return time.monotonic_ns() - self._start

    def seconds_until(self, deadline_ns: int | None) -> float | None:
        """How long to wait for `deadline_ns`; None for ever; not above 0 if it is past."""
        if deadline_ns is None:
            return None
        return min((deadline_ns - self.now_ns()) / NS_PER_S, threading.TIMEOUT_MAX)


def yield_processor() -> None:
    """Let another thread run."""
    time.sleep(0)


class TimerThread:
    """The heap of armed timers and the thread that fires them, which starts with the first timer."""

    def __init__(
        self,
        clock: MonotonicClock,
        enter_interrupt: Callable[[], None],
        on_error: Callable[[BaseException, str], None],
    ) -> None:
        self._clock = clock
        self._enter_interrupt = enter_interrupt
        self._on_error = on_error
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[int, int, ThreadTimer]] = []
        self._tickets = 0
        self._firing: ThreadTimer | None = None
        self._thread: threading.Thread | None = None
        self._ended = False

    def arm(self, timer: ThreadTimer, deadline_ns: int) -> None:
        with self._changed:
            assert not self._ended, f"timer '{timer.name}' is started after shutdown()"
            self._tickets += 1
            timer.ticket = self._tickets
            timer.deadline = deadline_ns
            heappush(self._heap, (deadline_ns, timer.ticket, timer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="timers", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is timer:
                self._changed.notify_all()

    def disarm(self, timer: ThreadTimer) -> bool:
        with self._changed:
            armed = timer.ticket != 0
            timer.ticket = 0
            while self._firing is timer and threading.current_thread() is not self._thread:
                self._changed.wait()
                armed = armed or timer.ticket != 0
                timer.ticket = 0
            return armed

    def end(self) -> None:
        """Fire nothing more; wait for a callback that has begun."""
        with self._changed:
            self._ended = True
            self._heap.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _main(self) -> None:
        self._enter_interrupt()
        while (timer := self._next_due()) is not None:
            try:
                timer.callback()
            except BaseException as error:  # noqa: BLE001 - re-raised by run()
                self._on_error(error, f"timer '{timer.name}'")
            with self._changed:
                self._firing = None
                self._changed.notify_all()

    def _next_due(self) -> ThreadTimer | None:
        """Wait for a timer to be due and take it; None at the end."""
        with self._changed:
            while not self._ended:
                while self._heap and self._heap[0][2].ticket != self._heap[0][1]:
                    heappop(self._heap)
                timeout = self._clock.seconds_until(self._heap[0][0]) if self._heap else None
                if timeout is not None and timeout <= 0:
                    timer = heappop(self._heap)[2]
                    timer.ticket = 0
                    self._firing = timer
                    return timer
                self._changed.wait(timeout)
        return None


class ThreadTimer(Timer):
    """A one-shot timer on real time. `ticket` names its live heap entry; 0 is none."""

    __slots__ = ("_thread", "callback", "deadline", "name", "ticket")

    def __init__(self, thread: TimerThread, callback: Callable[[], None], name: str) -> None:
        self._thread = thread
        self.callback = callback
        self.name = name
        self.ticket = 0
        self.deadline = 0

    def start(self, deadline_ns: int) -> None:
        self._thread.arm(self, deadline_ns)

    def cancel(self) -> bool:
        return self._thread.disarm(self)

    def armed(self) -> bool:
        return self.ticket != 0

    def deadline_ns(self) -> int | None:
        return self.deadline if self.ticket else None
