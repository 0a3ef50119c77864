"""A host with a clock that a test moves by hand, and recorders for what devices ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from vtlkit.host.api import Bitmap, Cell, Host, Timer

T = TypeVar("T")


class ManualTimer(Timer):
    def __init__(self, host: ManualHost, callback: Callable[[], None]) -> None:
        self._host = host
        self.callback = callback
        self.deadline: int | None = None

    def start(self, deadline_ns: int) -> None:
        self.deadline = deadline_ns

    def cancel(self) -> bool:
        armed, self.deadline = self.deadline is not None, None
        return armed

    def armed(self) -> bool:
        return self.deadline is not None

    def deadline_ns(self) -> int | None:
        return self.deadline


class ManualBitmap(Bitmap):
    def __init__(self) -> None:
        self.bits = 0

    def load(self) -> int:
        return self.bits

    def test(self, bit: int) -> bool:
        return bool(self.bits >> bit & 1)

    def set(self, bit: int) -> None:
        self.bits |= 1 << bit

    def clear(self, bit: int) -> None:
        self.bits &= ~(1 << bit)

    def test_and_set(self, bit: int) -> bool:
        before = self.test(bit)
        self.set(bit)
        return before

    def test_and_clear(self, bit: int) -> bool:
        before = self.test(bit)
        self.clear(bit)
        return before


class ManualCell(Cell[T], Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value

    def load(self) -> T:
        return self.value

    def store(self, value: T) -> None:
        self.value = value

    load_acquire = load
    store_release = store

    def xchg(self, value: T) -> T:
        before, self.value = self.value, value
        return before

    def cmpxchg(self, old: T, new: T) -> T:
        before = self.value
        if before == old:
            self.value = new
        return before

    def fetch_add(self, delta: T) -> T:
        raise NotImplementedError


class ManualHost:
    """The part of a host that devices use. `advance` runs due timers in order, each at its own time."""

    def __init__(self) -> None:
        self.now = 0
        self.timers: list[ManualTimer] = []

    def as_host(self) -> Host:
        return cast(Host, self)

    def now_ns(self) -> int:
        return self.now

    def timer(self, callback: Callable[[], None], name: str) -> ManualTimer:
        timer = ManualTimer(self, callback)
        self.timers.append(timer)
        return timer

    def bitmap(self, name: str) -> ManualBitmap:
        return ManualBitmap()

    def cell(self, value: T, name: str) -> ManualCell[T]:
        return ManualCell(value)

    def smp_mb(self) -> None:
        pass

    def advance(self, duration_ns: int) -> None:
        end = self.now + duration_ns
        while True:
            due = [timer for timer in self.timers if timer.deadline is not None and timer.deadline <= end]
            if not due:
                break
            timer = min(due, key=lambda candidate: candidate.deadline or 0)
            self.now = max(self.now, timer.deadline or 0)
            timer.deadline = None
            timer.callback()
        self.now = end


class Line:
    """Records an interrupt line: its level and how often it rose."""

    def __init__(self) -> None:
        self.level = 0
        self.edges = 0

    def __call__(self, level: int) -> None:
        if level > self.level:
            self.edges += 1
        self.level = level


class Events:
    """Records machine events in order."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def power_off(self) -> None:
        self.log.append("power_off")

    def reset(self) -> None:
        self.log.append("reset")

    def init(self) -> None:
        self.log.append("init")

    def post(self) -> None:
        self.log.append("post")

    def debug_exit(self, value: int) -> None:
        self.log.append(f"debug_exit {value:#x}")

    def guest_panic(self) -> None:
        self.log.append("guest_panic")

    def suspend(self) -> None:
        self.log.append("suspend")

    def wakeup(self) -> None:
        self.log.append("wakeup")
