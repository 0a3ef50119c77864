"""Small random protocols as data, and the tasks that follow them: each returns all that it has been told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from vtlkit.host.api import Bitmap, Cell, Host, Lock, LockRank, RwSem, WaitQueue

Step = tuple[object, ...]
Script = tuple[Step, ...]
Build = Callable[[Host], object]


@dataclass(frozen=True)
class Protocol:
    """What each task does."""

    scripts: tuple[Script, ...]

    def build(self, host: Host) -> None:
        """Spawn the tasks."""
        shared = Shared(host)
        for number, script in enumerate(self.scripts):
            host.spawn(shared.task(script), f"task {number}")  # type: ignore[arg-type]


class Shared:
    """What they share."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.cells: tuple[Cell[int], ...] = tuple([host.cell(0, name) for name in "xy"])
        self.bits: Bitmap = host.bitmap("bits")
        self.locks: tuple[Lock, ...] = (host.lock("outer", LockRank.MEMORY_CHANGE), host.lock("inner", LockRank.VCPU))
        self.sem: RwSem = host.rwsem("sem", LockRank.MEMORY_CHANGE)
        self.queue: WaitQueue = host.wait_queue("queue")
        self.lists: tuple[list[int], ...] = ([], [], [])

    def task(self, script: Script) -> Callable[[], tuple[object, ...]]:
        """A task that follows a script."""

        def body() -> tuple[object, ...]:
            told: list[object] = []
            for step in script:
                self.do(step, told)
            return tuple(told)

        return body

    def do(self, step: Step, told: list[object]) -> None:
        """One step."""
        name, *arguments = step
        method: Callable[..., object] = getattr(self, f"do_{name}")
        result = method(*arguments)
        if result is not None:
            told.append(result)

    def do_load(self, which: int) -> int:
        return self.cells[which].load()

    def do_store(self, which: int, value: int) -> None:
        self.cells[which].store(value)

    def do_add(self, which: int) -> int:
        return self.cells[which].fetch_add(1)

    def do_swap(self, which: int, old: int, new: int) -> int:
        return self.cells[which].cmpxchg(old, new)

    def do_exchange(self, which: int, value: int) -> int:
        return self.cells[which].xchg(value)

    def do_bit(self, bit: int, how: str) -> object:
        result: object = getattr(self.bits, how)(bit)
        return result

    def do_barrier(self) -> None:
        self.host.smp_mb()

    def do_append(self, which: int, value: int, length: int) -> tuple[int, ...]:
        """Data under a lock, with words touched inside."""
        with self.locks[which]:
            for _ in range(length):
                self.cells[which].fetch_add(1)
            self.lists[which].append(value)
            return tuple(self.lists[which])

    def do_both(self, value: int) -> tuple[int, ...]:
        with self.locks[0]:
            self.lists[0].append(value)
            with self.locks[1]:
                self.lists[1].append(value)
                return (*self.lists[0], *self.lists[1])

    def do_try(self, which: int) -> bool:
        if not self.locks[which].try_acquire():
            return False
        self.lists[which].append(9)
        self.locks[which].release()
        return True

    def do_read_list(self) -> int:
        with self.sem.reading():
            return len(self.lists[2])

    def do_write_list(self, value: int) -> None:
        with self.sem.writing():
            self.lists[2].append(value)

    def do_wait(self, which: int, value: int) -> int:
        self.host.wait_event(self.queue, lambda: self.cells[which].load() == value)
        return value

    def do_wake(self, which: int, value: int) -> None:
        self.cells[which].store(value)
        self.queue.wake()


_WHICH = st.integers(0, 1)
_VALUE = st.integers(0, 2)
WORDS = st.one_of(
    st.tuples(st.just("load"), _WHICH),
    st.tuples(st.just("store"), _WHICH, _VALUE),
    st.tuples(st.just("add"), _WHICH),
    st.tuples(st.just("swap"), _WHICH, _VALUE, _VALUE),
    st.tuples(st.just("exchange"), _WHICH, _VALUE),
    st.tuples(st.just("bit"), st.integers(0, 1), st.sampled_from(("set", "clear", "test", "test_and_set"))),
    st.tuples(st.just("barrier")),
)
LOCKS = st.one_of(
    st.tuples(st.just("append"), _WHICH, _VALUE, st.integers(0, 1)),
    st.tuples(st.just("both"), _VALUE),
    st.tuples(st.just("try"), _WHICH),
    st.tuples(st.just("read_list")),
    st.tuples(st.just("write_list"), _VALUE),
)
WAITS = st.one_of(
    st.tuples(st.just("wait"), _WHICH, st.integers(1, 2)),
    st.tuples(st.just("wake"), _WHICH, st.integers(1, 2)),
)


def protocols(*kinds: st.SearchStrategy[Step], steps: int = 3) -> st.SearchStrategy[Protocol]:
    """Two tasks of up to `steps` steps, or three of up to two."""
    script = st.lists(st.one_of(*kinds), min_size=1, max_size=steps).map(tuple)
    short = st.lists(st.one_of(*kinds), min_size=1, max_size=2).map(tuple)
    scripts = st.one_of(st.tuples(script, script), st.tuples(short, short, short.map(lambda each: each[:1])))
    return scripts.map(Protocol)
