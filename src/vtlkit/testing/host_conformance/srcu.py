"""Sleepable RCU: a writer waits for the read sections that had begun, and for no others."""

from __future__ import annotations

from vtlkit.host.api import RunnableHost
from vtlkit.testing.host_conformance.running import MS, ROUNDS, SETTLE_NS, TASKS, run_to_end, sleep, spawn_all

LONG = 12
"""Accesses of a section that is longer than a grace period without readers."""


def check_srcu_waits_for_readers(host: RunnableHost) -> None:
    """What is taken away before `synchronize` is used by nobody after it, whoever sleeps in a section."""
    srcu = host.srcu("srcu")
    current = host.cell(0, "current")
    freed = host.cell(-1, "freed")
    done = host.cell(0, "done")

    def reader(index: int) -> None:
        for turn in range(ROUNDS):
            section = srcu.read_lock()
            used = current.load()
            if (turn + index) % 4 == 0:
                host.relax()
            assert freed.load() < used, f"state {used} is used after its grace period"
            srcu.read_unlock(section)
        done.fetch_add(1)

    def writer() -> None:
        # Two of them: each must wait, whoever of the two changes the counters.
        while done.load() < TASKS:
            old = current.fetch_add(1)
            srcu.synchronize()
            before = freed.load()
            while before < old:
                before = freed.cmpxchg(before, old)
            host.relax()

    run_to_end(host, *spawn_all(host, reader), *(host.spawn(writer, name) for name in ("writer0", "writer1")))


def check_srcu_waits_for_overtaken_readers(host: RunnableHost) -> None:
    """As before with one reader, whose sections are long, and one writer: grace periods that follow each other at once,
    so that a reader may begin in one and be seen by none but the next."""
    srcu = host.srcu("srcu")
    current = host.cell(0, "current")
    freed = host.cell(-1, "freed")
    done = host.cell(False, "done")
    begun = host.cell(False, "begun")

    def reader() -> None:
        begun.store(True)
        for _ in range(ROUNDS):
            section = srcu.read_lock()
            used = current.load()
            for _ in range(LONG):
                assert freed.load() < used, f"state {used} is used after its grace period"
            srcu.read_unlock(section)
        done.store(True)

    def writer() -> None:
        while not done.load():
            old = current.fetch_add(1)
            srcu.synchronize()
            freed.store(old)
            # Where tasks are not interleaved a writer that waits for nobody would never let the reader begin.
            if not begun.load():
                host.relax()

    run_to_end(host, host.spawn(reader, "reader"), host.spawn(writer, "writer"))


def check_srcu_nests(host: RunnableHost) -> None:
    """A section inside a section, and two that overlap and end in the order of their beginning."""
    srcu = host.srcu("srcu")
    ended = host.cell(False, "ended")
    inside = host.cell(False, "inside")

    def reader() -> None:
        first = srcu.read_lock()
        inside.store(True)
        second = srcu.read_lock()
        sleep(host, SETTLE_NS)
        srcu.read_unlock(first)
        sleep(host, SETTLE_NS)
        ended.store(True)
        srcu.read_unlock(second)

    def writer() -> None:
        while not inside.load():
            host.relax()
        srcu.synchronize()
        assert ended.load(), "a writer did not wait for the inner section"

    run_to_end(host, host.spawn(reader, "reader"), host.spawn(writer, "writer"))


def check_srcu_ignores_later_readers(host: RunnableHost) -> None:
    """Sections that begin after a writer's call do not hold it up, though they overlap so that there is always one."""
    srcu = host.srcu("srcu")
    inside = host.cell(False, "inside")
    over = host.cell(False, "over")
    waited = host.cell(False, "waited")

    def first() -> None:
        section = srcu.read_lock()
        inside.store(True)
        sleep(host, SETTLE_NS)
        srcu.read_unlock(section)

    def later(_: int) -> None:
        """Sections that overlap: there is always one."""
        while not inside.load():
            host.relax()
        sleep(host, SETTLE_NS // 2)
        section = srcu.read_lock()
        while not over.load():
            sleep(host, MS)
            following = srcu.read_lock()
            srcu.read_unlock(section)
            section = following
        srcu.read_unlock(section)

    def writer() -> None:
        while not inside.load():
            host.relax()
        srcu.synchronize()
        waited.store(True)
        over.store(True)

    tasks = [host.spawn(first, "first"), host.spawn(writer, "writer")]
    run_to_end(host, *tasks, *spawn_all(host, later, 2))
    assert waited.load()
