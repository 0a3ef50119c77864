"""A tracer hands every event to its sink once, says which kick did what, and an error ends the trace, not the run."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from vtlkit.trace import events
from vtlkit.trace.events import Event
from vtlkit.trace.sinks import RingSink
from vtlkit.trace.tracer import BATCH, Tracer, VcpuTrace

NO_INFO = (0, 0, 0, 0)


class Rig:
    """A tracer whose time and context the test sets."""

    def __init__(self) -> None:
        self.now = 0
        self.context = "vp0"
        self.ring = RingSink(1 << 20)
        self.tracer = Tracer(lambda: self.now, lambda: self.context, self.ring)
        self.vcpus = [self.tracer.vm("vtl0").vcpu(number) for number in range(2)]
        for number, vcpu in enumerate(self.vcpus):
            self.context = f"vp{number}"
            vcpu.entry(0, False, 0)
            vcpu.exit("hlt", 0, NO_INFO, 0)
        self.context = "vp0"

    def sleep(self, number: int) -> None:
        self.context = f"vp{number}"
        self.vcpus[number].block("HALTED")
        self.context = "vp0"

    def wake(self, number: int) -> None:
        self.context = f"vp{number}"
        self.vcpus[number].wakeup()
        self.context = "vp0"

    def enter(self, number: int) -> None:
        self.context = f"vp{number}"
        self.vcpus[number].entry(0, False, 0)
        self.context = "vp0"

    def leave(self, number: int) -> None:
        self.context = f"vp{number}"
        self.vcpus[number].exit("interrupted", 0, NO_INFO, 0)
        self.context = "vp0"

    def last(self, kind: type[Event]) -> Event:
        self.tracer.flush()
        return [event for event in self.ring.events if isinstance(event, kind)][-1]

    def count(self, kind: type[Event]) -> int:
        self.tracer.flush()
        return sum(isinstance(event, kind) for event in self.ring.events)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_wake_names_the_kick_that_brought_it(rig: Rig) -> None:
    rig.sleep(1)
    rig.now = 50
    rig.vcpus[1].kick()
    rig.now = 80
    rig.wake(1)
    assert rig.last(events.KvmVcpuKick) == events.KvmVcpuKick(50, "vp0", "vtl0", 1, 1, "vtl0-vcpu0")
    assert rig.last(events.KvmVcpuWakeup) == events.KvmVcpuWakeup(80, "vp1", "vtl0", 1, 80, True, True, 1)


def test_the_newest_kick_counts_and_counts_once(rig: Rig) -> None:
    rig.vcpus[1].kick()
    rig.sleep(1)
    rig.vcpus[1].kick()
    rig.wake(1)
    assert rig.last(events.KvmVcpuWakeup).values()["woken_by"] == 2
    rig.sleep(1)
    rig.wake(1)
    assert rig.last(events.KvmVcpuWakeup).values()["woken_by"] == 0


def test_a_kick_of_a_timer_is_the_timers(rig: Rig) -> None:
    rig.context = "timer 'tick'"
    rig.vcpus[0].kick()
    assert rig.last(events.KvmVcpuKick).values()["source"] == "timer 'tick'"


def test_a_vcpu_does_not_kick_itself(rig: Rig) -> None:
    rig.vcpus[0].kick()
    assert rig.count(events.KvmVcpuKick) == 0


def test_an_exit_names_the_kick_that_found_the_vcpu_in_the_guest(rig: Rig) -> None:
    rig.enter(1)
    rig.vcpus[1].kick()
    rig.vcpus[1].kick_running()
    rig.vcpus[1].kick()
    rig.leave(1)
    assert rig.last(events.KvmExit).values()["kicked_by"] == 1
    rig.enter(1)
    rig.leave(1)
    assert rig.last(events.KvmExit).values()["kicked_by"] == 0


def test_a_request_that_lets_sleep_is_a_kick_of_its_own(rig: Rig) -> None:
    rig.enter(1)
    rig.vcpus[1].kick_running()
    rig.leave(1)
    assert rig.count(events.KvmVcpuKick) == 1
    assert rig.last(events.KvmExit).values()["kicked_by"] == 1


def test_a_kick_before_the_entry_does_not_wake_later(rig: Rig) -> None:
    rig.vcpus[1].kick()
    rig.enter(1)
    rig.leave(1)
    rig.sleep(1)
    rig.wake(1)
    assert rig.last(events.KvmVcpuWakeup).values()["woken_by"] == 0


def test_a_poll_that_finds_something_names_the_kick(rig: Rig) -> None:
    rig.vcpus[1].kick()
    rig.vcpus[1].polled(300, True)
    assert rig.last(events.KvmVcpuWakeup).values()["woken_by"] == 1
    rig.vcpus[1].polled(300, False)
    assert rig.last(events.KvmVcpuWakeup).values()["woken_by"] == 0


def test_a_batch_is_written_when_a_vcpu_enters_the_guest(rig: Rig) -> None:
    """And by nobody who may hold a lock, or be a timer."""
    assert len(rig.ring.events) == 0
    for _ in range(BATCH - 5):
        rig.vcpus[0].eoi(0, 0x31)
    rig.sleep(0)
    assert len(rig.ring.events) == 0
    rig.enter(0)
    assert len(rig.ring.events) == BATCH


class Failing:
    """A sink on a full disk."""

    def __init__(self, *, at_close: bool = False) -> None:
        self.writes = 0
        self._at_close = at_close

    def write(self, batch: Sequence[Event]) -> None:
        self.writes += 1
        if not self._at_close:
            raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        if self._at_close:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at_close", [False, True])
def test_an_error_of_the_sink_is_kept(at_close: bool) -> None:
    sink = Failing(at_close=at_close)
    tracer = Tracer(lambda: 0, lambda: "vp0", sink)
    vcpu = tracer.vm("vtl0").vcpu(0)
    for _ in range(3):
        for _ in range(BATCH):
            vcpu.eoi(0, 0x31)
        vcpu.entry(0, False, 0)
    tracer.close()
    assert tracer.error is not None
    assert tracer.error.errno == errno.ENOSPC
    assert sink.writes == (4 if at_close else 1)


THREADS = 4
EACH = 2_000


class Exclusive:
    """A sink that two threads may not be in."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._inside = threading.Lock()

    def write(self, batch: Sequence[Event]) -> None:
        assert self._inside.acquire(blocking=False), "two threads write"
        for event in batch:
            self.events.append(event)
        self._inside.release()

    def close(self) -> None:
        """Nothing to end."""


@contextmanager
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_lose_no_event_and_write_one_at_a_time() -> None:
    sink = Exclusive()
    tracer = Tracer(lambda: 0, lambda: threading.current_thread().name, sink)
    failures: list[BaseException] = []

    def body(vcpu: VcpuTrace, other: VcpuTrace) -> None:
        try:
            for _ in range(EACH):
                vcpu.entry(0, False, 0)
                other.kick()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    vcpus = [tracer.vm("vtl0").vcpu(number) for number in range(THREADS)]
    threads = [
        threading.Thread(target=body, args=(vcpu, vcpus[number - 1]), name=f"vp{number}")
        for number, vcpu in enumerate(vcpus)
    ]
    with _switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    tracer.close()
    assert not failures
    kicks = [event.id for event in sink.events if isinstance(event, events.KvmVcpuKick)]
    assert sorted(kicks) == list(range(1, THREADS * EACH + 1))
    assert len(sink.events) == 2 * THREADS * EACH
