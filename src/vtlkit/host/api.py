"""What the hypervisor asks of its host: tasks, shared cells, locks, wait queues, timers and time.

Counterpart: the parts of the Linux kernel that `virt/kvm` stands on (`READ_ONCE`/`WRITE_ONCE`, atomics, bit operations,
`struct mutex`, `struct rw_semaphore`, rcuwait, hrtimer, signals). Two hosts implement it: `host.threads` (one operating
system thread per task) and `host.sim` (greenlets under a scheduler that makes every choice). Hypervisor code is written
once, as plain blocking functions over this module, and never learns which host it runs on.

Rules that hold on every host:

* A word that two tasks share is a `Cell`, a `Bitmap`, or is protected by a lock made here. Nothing else is shared.
* Only the host blocks a task. The only blocking calls are those whose docstring says so.
* Only the host knows the time. Times are integer nanoseconds of the host's monotonic clock.
* Timer callbacks run in interrupt context: they must not block; they may store to cells, set bits and wake queues.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class LockRank(enum.IntEnum):
    """Lock order, outermost first: a task may take a lock only of a rank above all those it holds (docs/locking.md)."""

    PARTITION = 4
    MEMORY_CHANGE = 9
    VCPU = 20
    MEMORY_TRANSACTION = 30
    BUS = 36
    PORTS = 38
    SLOTS = 40
    IRQ_ROUTING = 45
    IRQCHIP = 50
    APIC = 60
    SYNIC = 70
    DEVICE = 90
    ENGINE = 100
    TLB_LOCKS = 110
    LEAF = 200


class Cell(ABC, Generic[T]):
    """One shared word. Every access is atomic; the method names the ordering, as the kernel's accessors do."""

    __slots__ = ()

    @abstractmethod
    def load(self) -> T:
        """READ_ONCE: no ordering."""

    @abstractmethod
    def store(self, value: T) -> None:
        """WRITE_ONCE: no ordering."""

    @abstractmethod
    def load_acquire(self) -> T:
        """smp_load_acquire."""

    @abstractmethod
    def store_release(self, value: T) -> None:
        """smp_store_release."""

    @abstractmethod
    def xchg(self, value: T) -> T:
        """Store `value`, return what was there; fully ordered."""

    @abstractmethod
    def cmpxchg(self, old: T, new: T) -> T:
        """Store `new` if the cell equals `old`; return what was there; fully ordered if it stored."""

    @abstractmethod
    def fetch_add(self, delta: T) -> T:
        """Add `delta`, return the value before; fully ordered. Only for integer cells."""


class Bitmap(ABC):
    """A shared set of bits numbered from 0: the host's form of `unsigned long` plus the bit operations."""

    __slots__ = ()

    @abstractmethod
    def load(self) -> int:
        """All bits as one integer (READ_ONCE)."""

    @abstractmethod
    def test(self, bit: int) -> bool:
        """test_bit: no ordering."""

    @abstractmethod
    def set(self, bit: int) -> None:
        """set_bit: atomic, no ordering."""

    @abstractmethod
    def clear(self, bit: int) -> None:
        """clear_bit: atomic, no ordering."""

    @abstractmethod
    def test_and_set(self, bit: int) -> bool:
        """Atomic and fully ordered; the bit's value before."""

    @abstractmethod
    def test_and_clear(self, bit: int) -> bool:
        """Atomic and fully ordered; the bit's value before."""


class Lock(ABC):
    """A sleeping mutual-exclusion lock (`struct mutex`); a context manager. Taking it twice is an assertion."""

    __slots__ = ()

    @abstractmethod
    def acquire(self) -> None:
        """Block until the lock is held."""

    @abstractmethod
    def try_acquire(self) -> bool:
        """Take the lock if it is free; never blocks."""

    @abstractmethod
    def release(self) -> None:
        """Let the lock go. The caller must hold it."""

    @abstractmethod
    def held(self) -> bool:
        """Whether the calling task holds the lock (lockdep_assert_held's question)."""

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class RwSem(ABC):
    """A reader/writer semaphore (`struct rw_semaphore`): readers or one writer; a waiting writer goes first."""

    __slots__ = ()

    @abstractmethod
    def down_read(self) -> None:
        """Block until held for reading."""

    @abstractmethod
    def up_read(self) -> None: ...

    @abstractmethod
    def down_write(self) -> None:
        """Block until held for writing: no reader and no other writer inside."""

    @abstractmethod
    def up_write(self) -> None: ...

    @abstractmethod
    def reading(self) -> AbstractContextManager[None]:
        """`with sem.reading():` is down_read ... up_read."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """`with sem.writing():` is down_write ... up_write."""


class Srcu(ABC):
    """Sleepable read-copy-update (`struct srcu_struct`): readers that may block, and a writer that waits for them.

    `synchronize` returns when every section that had begun before it has ended. So what a writer stores before it is
    seen by every section that still runs after it.
    """

    __slots__ = ()

    @abstractmethod
    def read_lock(self) -> int:
        """Begin a read section; a full barrier. Never blocks, and nests. Returns what `read_unlock` must be given."""

    @abstractmethod
    def read_unlock(self, index: int) -> None:
        """End the section that `read_lock` returned `index` for; a full barrier first. Never blocks."""

    @abstractmethod
    def synchronize(self) -> None:
        """Block until every read section that has begun has ended; those that begin meanwhile are not waited for.

        A full barrier before and after. From inside a read section it would wait for itself, for ever.
        """


class WaitQueue(ABC):
    """A place to sleep with the prepare / check / sleep protocol (rcuwait, swait).

    The waiter does, in this order: `prepare()`; check its condition; `host.schedule()` if the condition does not hold;
    and again from `prepare()`; at the end `finish()`. The waker changes the condition first and calls `wake()` after.
    `prepare()` orders the task's state store before the loads of the check, and `wake()` orders the waker's earlier
    stores before its look at the sleeper's state: one of the two sees the other, so no wake-up is lost.
    """

    __slots__ = ()

    @abstractmethod
    def prepare(self, *, interruptible: bool = True) -> None:
        """Enter the queue (once) and mark the calling task as about to sleep; a full barrier. Does not block.

        `interruptible`: a pending signal ends the sleep (TASK_INTERRUPTIBLE), else only `wake` and a deadline do.
        """

    @abstractmethod
    def finish(self) -> None:
        """Leave the queue and mark the calling task as running. Does not block."""

    @abstractmethod
    def wake(self) -> bool:
        """Make every task in the queue runnable; a full barrier first. True if one was asleep. Never blocks."""

    @abstractmethod
    def waiters(self) -> int:
        """How many tasks are in the queue (for reports and statistics)."""


class Task(ABC):
    """A thread of control of the host."""

    __slots__ = ()

    name: str

    @abstractmethod
    def signal(self) -> None:
        """Send the task a signal: set its pending flag and end an interruptible sleep. Never blocks."""

    @abstractmethod
    def signal_pending(self) -> bool:
        """Whether a signal is pending (`signal_pending(current)`)."""

    @abstractmethod
    def clear_signal(self) -> bool:
        """Take the pending signal, as returning to user space does; whether there was one."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the task's function has returned."""

    @abstractmethod
    def join(self) -> None:
        """Block until the task is done; raises what its function raised."""


class Timer(ABC):
    """A one-shot high-resolution timer (`struct hrtimer`). Restart it for a period."""

    __slots__ = ()

    @abstractmethod
    def start(self, deadline_ns: int) -> None:
        """Fire once at `deadline_ns` of the host clock; at once if that is past. Replaces an earlier deadline."""

    @abstractmethod
    def cancel(self) -> bool:
        """Disarm; whether it was armed. The callback does not start after this returns."""

    @abstractmethod
    def armed(self) -> bool: ...

    @abstractmethod
    def deadline_ns(self) -> int | None:
        """The armed deadline, or None."""


class Host(ABC):
    """Factory of everything above, and the one place that blocks."""

    deterministic: bool
    """True if a run is a function of the recorded choices: time is virtual and guest slices are counted."""

    @abstractmethod
    def cell(self, value: T, name: str) -> Cell[T]: ...

    @abstractmethod
    def bitmap(self, name: str) -> Bitmap: ...

    @abstractmethod
    def lock(self, name: str, rank: LockRank = LockRank.LEAF) -> Lock: ...

    @abstractmethod
    def rwsem(self, name: str, rank: LockRank = LockRank.LEAF) -> RwSem: ...

    @abstractmethod
    def wait_queue(self, name: str) -> WaitQueue: ...

    def srcu(self, name: str) -> Srcu:
        """Made of this host's cells, a lock of rank LEAF and a wait queue (`host.srcu`)."""
        from vtlkit.host.srcu import CellSrcu

        return CellSrcu(self, name)

    @abstractmethod
    def timer(self, callback: Callable[[], None], name: str) -> Timer: ...

    @abstractmethod
    def spawn(self, function: Callable[[], None], name: str, *, daemon: bool = False) -> Task:
        """Start a task. A daemon task does not keep the run alive and may sleep for ever."""

    @abstractmethod
    def current(self) -> Task:
        """The calling task."""

    @abstractmethod
    def context(self) -> str:
        """What the calling code runs as: its task's name, or `timer 'name'` in a timer's callback (for traces)."""

    @abstractmethod
    def now_ns(self) -> int:
        """Nanoseconds of the host's monotonic clock, from 0 at the start of the run."""

    @abstractmethod
    def schedule(self, deadline_ns: int | None = None) -> None:
        """Block until woken, signalled, or `deadline_ns` has come; at once if `prepare` has not marked the task."""

    @abstractmethod
    def relax(self) -> bool:
        """cpu_relax: let other tasks run; False if none wants to. May block for as long as they do."""

    def wait_event(
        self,
        queue: WaitQueue,
        condition: Callable[[], bool],
        *,
        interruptible: bool = True,
        deadline_ns: int | None = None,
    ) -> bool:
        """Block on `queue` until `condition()`; False if a signal or the deadline ended the wait first.

        The condition comes first: if it holds, a pending signal and a past deadline do not matter. It may take locks.
        """
        if condition():
            return True
        task = self.current()
        try:
            while True:
                queue.prepare(interruptible=interruptible)
                if condition():
                    return True
                if interruptible and task.signal_pending():
                    return False
                if deadline_ns is not None and self.now_ns() >= deadline_ns:
                    return False
                self.schedule(deadline_ns)
        finally:
            queue.finish()

    @abstractmethod
    def guest_budget_ns(self) -> int | None:
        """How long the calling task may run guest code before it must come back to the run loop.

        A deterministic host chooses it (from its choice sequence, bounded by the next timer); None means until kicked.
        """

    @abstractmethod
    def consume_ns(self, duration_ns: int) -> None:
        """Account `duration_ns` of guest execution to the virtual clock and let due timers fire; nothing on real time.

        The calling task may be descheduled: this is a deterministic host's pre-emption point. May block.
        """

    @abstractmethod
    def choose(self, count: int, label: str) -> int:
        """An integer in [0, count) from the run's one choice sequence."""

    @abstractmethod
    def random_bytes(self, size: int) -> bytes:
        """`size` bytes from the run's one choice sequence (RDRAND, device entropy)."""

    @abstractmethod
    def smp_mb(self) -> None: ...

    @abstractmethod
    def smp_rmb(self) -> None: ...

    @abstractmethod
    def smp_wmb(self) -> None: ...


class RunnableHost(Host):
    """A host as its owner sees it: what made it also runs and ends it. Hypervisor code sees only `Host`."""

    @abstractmethod
    def run(self, until: int | None = None) -> None:
        """Return when every task but daemons is done, after `stop()`, or at time `until` (ns); may be called again.

        Raises the first exception that a task or a timer callback raised, after ending the other tasks. Call it from
        outside the tasks.
        """

    @abstractmethod
    def stop(self) -> None:
        """End every task at its next blocking call, by an exception that only `finally` blocks see. Never blocks."""
