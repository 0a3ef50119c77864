"""Real time and the timers on it. Counterpart: kernel/time/hrtimer.c. The one module that imports `time`.

Promise: one thread per host fires what is due, in the order of deadlines, ties in the order in which they were started.
Callbacks run on that thread, one at a time, in interrupt context. `cancel` waits for a callback that has begun.
Everything here is protected by `TimerThread._changed`; callbacks run without it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vtlkit.host.alarms import NEVER, Alarm, AlarmQueue
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
    """The armed timers and the thread that fires them, which starts with the first timer."""

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
        self._alarms = AlarmQueue()
        self._firing: Alarm | None = None
        self._thread: threading.Thread | None = None
        self._ended = False

    def arm(self, timer: ThreadTimer, deadline_ns: int) -> None:
        with self._changed:
            assert not self._ended, f"timer '{timer.name}' is started after shutdown()"
            before = self._alarms.next
            self._alarms.arm(timer, deadline_ns)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="timers", daemon=True)
                self._thread.start()
            elif self._alarms.next < before:
                self._changed.notify_all()

    def disarm(self, timer: ThreadTimer) -> bool:
        with self._changed:
            armed = self._forget(timer)
            while self._firing is timer and threading.current_thread() is not self._thread:
                self._changed.wait()
                armed |= self._forget(timer)
            return armed

    def _forget(self, timer: ThreadTimer) -> bool:
        """Disarm; whether it was armed. The caller holds `_changed`."""
        armed = timer.ticket != 0
        if armed:
            self._alarms.disarm(timer)
        return armed

    def end(self) -> None:
        """Fire nothing more; wait for a callback that has begun."""
        with self._changed:
            self._ended = True
            self._alarms.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def firing(self) -> Alarm | None:
        """Whose callback this thread is in."""
        return self._firing

    def _main(self) -> None:
        self._enter_interrupt()
        while (alarm := self._next_due()) is not None:
            try:
                alarm.expire()
            except BaseException as error:  # noqa: BLE001 - re-raised by run()
                self._on_error(error, alarm.alarm_name())
            with self._changed:
                self._firing = None
                self._changed.notify_all()

    def _next_due(self) -> Alarm | None:
        """Wait for an alarm to be due and take it; None at the end."""
        with self._changed:
            while not self._ended:
                deadline = self._alarms.next
                timeout = self._clock.seconds_until(deadline) if deadline < NEVER else None
                if timeout is not None and timeout <= 0:
                    self._firing = self._alarms.take()
                    return self._firing
                self._changed.wait(timeout)
        return None


class ThreadTimer(Alarm, Timer):
    """A one-shot timer on real time."""

    __slots__ = ("_callback", "_thread", "name")

    def __init__(self, thread: TimerThread, callback: Callable[[], None], name: str) -> None:
        super().__init__()
        self._thread = thread
        self._callback = callback
        self.name = name

    def start(self, deadline_ns: int) -> None:
        self._thread.arm(self, deadline_ns)

    def cancel(self) -> bool:
        return self._thread.disarm(self)

    def armed(self) -> bool:
        return self.ticket != 0

    def deadline_ns(self) -> int | None:
        return self.deadline if self.ticket else None

    def expire(self) -> None:
        self._callback()

    def alarm_name(self) -> str:
        return f"timer '{self.name}'"
