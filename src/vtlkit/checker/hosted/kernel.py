"""The kernel's vocabulary for models: variables, atomics, barriers, locks, waits, SRCU and kicks, in their real order.

Models are plain functions on a `CheckHost`. The orders are those of Documentation/atomic_t.txt, atomic_bitops.txt and
memory-barriers.txt: an atomic operation without a result orders nothing, one with a result is between two full
barriers, one that fails orders nothing. Under "tso", as on x86, every atomic operation is a full barrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vtlkit.checker.hosted.host import CheckHost
from vtlkit.checker.hosted.words import Word, bit_of, clearer, setter
from vtlkit.checker.ops import NO_WRITE, Order, Value

if TYPE_CHECKING:
    from vtlkit.checker.hosted.world import World
    from vtlkit.host.api import Host, RwSem

FULL = Order.SEQ_CST
"""Of an atomic operation: between two full barriers, as those without a suffix that return something."""


class Variable:
    """A variable that several threads touch. Values are whatever cannot change."""

    __slots__ = ("_word", "name")

    def __init__(self, world: World, name: str, value: Value) -> None:
        self._word = Word(world, name, value)
        self.name = self._word.name

    # --- accesses --------------------------------------------------------------------------------------------------

    def read_once(self) -> Value:
        """READ_ONCE, atomic_read, test_bit of all bits."""
        value = self._word.read()
        return value

    def write_once(self, value: Value) -> None:
        """WRITE_ONCE, atomic_set."""
        self._word.write(value)

    def read(self) -> Value:
        """A plain load. It may race, which is an error."""
        value = self._word.read(Order.PLAIN)
        return value

    def write(self, value: Value) -> None:
        """A plain store. It may race, which is an error."""
        self._word.write(value, Order.PLAIN)

    def load_acquire(self) -> Value:
        """smp_load_acquire."""
        value = self._word.read(Order.ACQUIRE)
        return value

    def store_release(self, value: Value) -> None:
        """smp_store_release, rcu_assign_pointer."""
        self._word.write(value, Order.RELEASE)

    def store_mb(self, value: Value) -> None:
        """smp_store_mb: WRITE_ONCE, then a full barrier."""
        self._word.write(value)
        self._word.world.full_barrier()

    def await_value(self, until: Callable[[Value], bool], *, may_sleep: bool = False) -> Value:
        """smp_cond_load_acquire: wait for a value. `may_sleep`: to wait for ever is no error."""
        value = self._word.world.wait(self._word, until, may_sleep)
        return value

    # --- atomic operations, bits -------------------------------------------------------------------------------------

    def inc(self) -> None:
        """atomic_inc: no order."""
        self._atomic(_adder(1), Order.RELAXED, "inc")

    def dec(self) -> None:
        """atomic_dec: no order."""
        self._atomic(_adder(-1), Order.RELAXED, "dec")

    def fetch_add(self, amount: int, order: Order = FULL) -> int:
        """atomic_fetch_add, and with `amount` on top atomic_add_return; `order`: FULL, or that of the suffix."""
        old = self._atomic(_adder(amount), order, f"fetch_add {amount}")
        assert isinstance(old, int)
        return old

    def xchg(self, value: Value, order: Order = FULL) -> Value:
        """xchg."""
        old = self._atomic(lambda _old: value, order, "xchg")
        return old

    def cmpxchg(self, old: Value, new: Value, order: Order = FULL) -> Value:
        """cmpxchg: what was there. One that finds another value orders nothing."""
        if self._word.world.book.weak:
            # A barrier in front would order the one that fails too.
            found = self._word.read()
            if found != old:
                return found
        found = self._atomic(lambda value: new if value == old else NO_WRITE, order, "cmpxchg")
        return found

    def set_bit(self, bit: int) -> None:
        """set_bit: atomic, no order."""
        self._atomic(setter(bit), Order.RELAXED, f"set_bit {bit}")

    def clear_bit(self, bit: int) -> None:
        """clear_bit: atomic, no order."""
        self._atomic(clearer(bit), Order.RELAXED, f"clear_bit {bit}")

    def clear_bit_unlock(self, bit: int) -> None:
        """clear_bit_unlock: release."""
        self._atomic(clearer(bit), Order.RELEASE, f"clear_bit_unlock {bit}")

    def test_bit(self, bit: int) -> bool:
        """test_bit: no order."""
        value = self._word.read()
        return bit_of(value, bit)

    def test_and_set_bit(self, bit: int, order: Order = FULL) -> bool:
        """test_and_set_bit; with ACQUIRE test_and_set_bit_lock."""
        old = self._atomic(setter(bit), order, f"test_and_set_bit {bit}")
        return bit_of(old, bit)

    def test_and_clear_bit(self, bit: int, order: Order = FULL) -> bool:
        """test_and_clear_bit."""
        old = self._atomic(clearer(bit), order, f"test_and_clear_bit {bit}")
        return bit_of(old, bit)

    def _atomic(self, change: Callable[[Value], Value], order: Order, label: str) -> Value:
        word, world = self._word, self._word.world
        if order is FULL:
            world.full_barrier()
        old = word.update(change, _half(order), label=label)
        # On a variable of its own it is no operation of the task, but on x86 a barrier all the same.
        if order is FULL or (world.book.locked_orders and not word.shared):
            world.full_barrier()
        return old


def _half(order: Order) -> Order:
    """Of the operation itself, beside its barriers."""
    return Order.ACQ_REL if order is FULL else order


def _adder(amount: int) -> Callable[[Value], Value]:
    def change(old: Value) -> Value:
        assert isinstance(old, int)
        return old + amount

    return change


class Kernel:
    """Makes what a model is made of. One for each world: `Kernel(host)` in the function that builds it."""

    __slots__ = ("_host", "_world", "name")

    def __init__(self, host: Host) -> None:
        if not isinstance(host, CheckHost):
            raise TypeError("models of the kernel's code run on the checking host alone")
        self._host = host
        self._world = host.world
        self.name = "kernel"

    def word(self, name: str, initial: Value = 0) -> Variable:
        """A variable."""
        return Variable(self._world, name, initial)

    def spinlock(self, name: str) -> SpinLock:
        """spinlock_t; a mutex is the same here, as nobody runs on while a task waits."""
        return SpinLock(self._world, name)

    mutex = spinlock

    def rwsem(self, name: str) -> RwSem:
        """struct rw_semaphore: a writer that waits keeps new readers out."""
        return self._host.rwsem(name)

    def sleeper(self, name: str) -> Sleeper:
        """A task's state, for what it sleeps in."""
        return Sleeper(self._world, name)

    def srcu(self, name: str) -> Srcu:
        """struct srcu_struct."""
        return Srcu(self._world, name)

    def processor(self, name: str) -> Processor:
        """What an interrupt reaches: a guest that runs until one comes."""
        return Processor(self._world, name)

    def smp_mb(self) -> None:
        """Full barrier."""
        self._host.smp_mb()

    def smp_rmb(self) -> None:
        """Loads before loads."""
        self._host.smp_rmb()

    def smp_wmb(self) -> None:
        """Stores before stores."""
        self._host.smp_wmb()

    def smp_mb_before_atomic(self) -> None:
        """smp_mb__before_atomic: nothing where the atomic operation is a full barrier (x86)."""
        if self._world.book.weak:
            self._host.smp_mb()

    smp_mb_after_atomic = smp_mb_before_atomic
    smp_mb_after_spinlock = smp_mb_before_atomic


class SpinLock:
    """Acquire when it is taken, release when it is let go. A trylock that fails, and a look, order nothing."""

    __slots__ = ("_word", "name")

    def __init__(self, world: World, name: str) -> None:
        self._word = Word(world, name, 0)
        self.name = self._word.name

    def lock(self) -> None:
        """spin_lock, mutex_lock."""
        self._word.update(_one, Order.ACQUIRE, until=_is_zero, label="lock")

    def unlock(self) -> None:
        """spin_unlock."""
        self._word.write(0, Order.RELEASE)

    def trylock(self) -> bool:
        """spin_trylock."""
        held = self.is_locked()
        if held:
            return False
        old = self._word.update(lambda old: NO_WRITE if old else 1, Order.ACQUIRE, label="trylock")
        return not old

    def is_locked(self) -> bool:
        """spin_is_locked."""
        value = self._word.read()
        return bool(value)


def _one(_old: Value) -> Value:
    return 1


def _is_zero(value: Value) -> bool:
    return value == 0


class Sleeper:
    """A task's `__state`, its signal, and the wait that it is in: rcuwait, or a swait queue for one."""

    __slots__ = ("_signal", "_state", "_waiter", "_world", "name")

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._state = Word(world, f"{name}.state", 0)
        self._waiter = Word(world, f"{name}.waiter", 0)
        self._signal = Word(world, f"{name}.signal", 0)
        self.name = name

    def prepare(self) -> None:
        """prepare_to_rcuwait: who waits; rcu_assign_pointer."""
        self._waiter.write(1, Order.RELEASE)

    def set_current_state(self, *, barrier: bool = True) -> None:
        """set_current_state(TASK_INTERRUPTIBLE), with smp_store_mb's barrier; __set_current_state without."""
        self._state.write(1)
        if barrier:
            self._world.full_barrier()

    def schedule(self, *, may_sleep: bool = False) -> None:
        """Sleep until woken; not at all if somebody has set the state back, or a signal is pending."""
        pending = self._signal.read()
        if pending:
            self._state.write(0)
            return
        self._world.wait(self._state, _is_zero, may_sleep, 0)

    def finish(self) -> None:
        """finish_rcuwait: nobody waits; the state is TASK_RUNNING."""
        self._waiter.write(0, Order.RELEASE)
        self._state.write(0)

    def wake_up(self, *, barrier: bool = True) -> bool:
        """rcuwait_wake_up: a full barrier, then a look at who waits. Whether it slept."""
        if barrier:
            self._world.full_barrier()
        waits = self._waiter.read()
        return bool(waits) and self.wake_up_process()

    def wake_up_process(self) -> bool:
        """try_to_wake_up: a full barrier under the task's lock, then a look at the state."""
        self._world.full_barrier()
        old = self._state.update(lambda old: 0 if old else NO_WRITE, Order.ACQ_REL, label="wake_up")
        return bool(old)

    def send_signal(self) -> None:
        """Store it, then wake an interruptible sleeper, whatever it waits in."""
        self._signal.write(1)
        self.wake_up_process()

    def signal_pending(self) -> bool:
        """signal_pending(current)."""
        pending = self._signal.read()
        return bool(pending)


class Srcu:
    """kernel/rcu/srcutree.c: two counters of readers, and the index of that which new readers take.

    What is left out: that each processor has counters of its own, one for beginnings and one for ends, which are added
    up (with barrier A between the sums); here it is one word that both change. Writers take a mutex.
    """

    __slots__ = ("_count", "_index", "_mutex", "_world", "name")

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._index = Word(world, f"{name}.index", 0)
        self._count = (Word(world, f"{name}.readers0", 0), Word(world, f"{name}.readers1", 0))
        self._mutex = SpinLock(world, f"{name}.mutex")
        self.name = name

    def read_lock(self, *, barrier: bool = True) -> int:
        """srcu_read_lock, with barrier B."""
        index = self._index.read()
        assert isinstance(index, int)
        count = self._count[index]
        count.update(_adder(1), label="lock")
        if barrier:
            self._world.full_barrier()
        return index

    def read_unlock(self, index: int, *, barrier: bool = True) -> None:
        """srcu_read_unlock, with barrier C."""
        if barrier:
            self._world.full_barrier()
        count = self._count[index]
        count.update(_adder(-1), label="unlock")

    def synchronize(self) -> None:
        """synchronize_srcu: every reader that may have begun before has ended."""
        self._mutex.lock()
        self._world.full_barrier()
        index = self._index.read()
        assert isinstance(index, int)
        self._wait(1 - index)
        self._world.full_barrier()
        self._index.write(1 - index)
        self._world.full_barrier()
        self._wait(index)
        self._world.full_barrier()
        self._mutex.unlock()

    def _wait(self, index: int) -> None:
        self._world.wait(self._count[index], _is_zero, False)


class Processor:
    """A physical processor in the guest: an interprocessor interrupt is what makes it leave."""

    __slots__ = ("_pending", "_world", "name")

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._pending = Word(world, f"{name}.ipi", 0)
        self.name = name

    def send_ipi(self) -> None:
        """smp_send_reschedule: what was stored before is seen behind the interrupt."""
        self._pending.write(1, Order.RELEASE)

    def run_guest(self, *, may_sleep: bool = True) -> None:
        """The guest, until an interrupt comes. `may_sleep`: for ever is no error."""
        self._world.wait(self._pending, bool, may_sleep)
        self._pending.write(0)
