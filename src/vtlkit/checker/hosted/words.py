"""Shared words of the checking host: every access is an operation of the task (`checker.ops`).

How the kernel's accesses become operations: docs/design/checker.md. A word that only one task touches, or nobody
writes, is no operation; `Accesses` keeps book, and says so when that turns out to be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

from vtlkit.checker.ops import NO_WRITE, Order, Read, Rmw, Value, Write
from vtlkit.checker.program import Again
from vtlkit.host.api import Bitmap, Cell

if TYPE_CHECKING:
    from vtlkit.checker.hosted.world import World

T = TypeVar("T")


class Accesses:
    """Who reads and writes which word, over all worlds of a program; and which words are shared."""

    def __init__(self) -> None:
        self.shared: set[str] = set()
        self.learnt: Again | None = None
        """What makes the search begin anew. A task may swallow the exception: so it is kept here as well."""
        self.probing = True
        """All tasks run in one world: what they share is in it, and the search has not begun."""
        self._readers: dict[str, set[str]] = {}
        self._writers: dict[str, set[str]] = {}

    def note(self, name: str, task: str, *, writes: bool) -> None:
        """A task touches a word. Raises Again if that makes it a shared one."""
        writers = self._writers.setdefault(name, set())
        readers = self._readers.setdefault(name, set())
        if writes:
            if task in writers:
                return
            writers.add(task)
        else:
            if task in readers:
                return
            readers.add(task)
        if name not in self.shared and writers and len(writers | readers) > 1:
            self.share(name)

    def share(self, name: str) -> None:
        """From now on every access to the word is an operation. Raises Again."""
        self.shared.add(name)
        if not self.probing:
            self.learn(f"'{name}' is shared")

    def wait_for(self, name: str) -> NoReturn:
        """A word is waited for that nobody has touched: somebody must, or it waits for ever. Raises Again."""
        self.shared.add(name)
        self.learn(f"'{name}' is waited for")

    def learn(self, what: str) -> NoReturn:
        """Raise Again, and keep it."""
        self.learnt = Again(what)
        raise self.learnt


class Word:
    """One word. `value`: what it was when the tasks began; of one that is not shared, what it is."""

    __slots__ = ("name", "shared", "value", "world")

    def __init__(self, world: World, name: str, value: Value) -> None:
        self.world = world
        self.name = world.enter(self, name)
        self.value = value
        self.shared = self.name in world.accesses.shared

    def read(self, order: Order = Order.RELAXED) -> Value:
        """Its value, to the running task."""
        world = self.world
        if world.running is None:
            return self.value
        if self.shared:
            return world.perform(Read(self.name, order))
        world.accesses.note(self.name, world.running.name, writes=False)
        world.alone(self.name)
        return self.value

    def write(self, value: Value, order: Order = Order.RELAXED) -> None:
        """Store."""
        world = self.world
        if world.running is not None:
            if self.shared:
                world.perform(Write(self.name, value, order))
                return
            world.accesses.note(self.name, world.running.name, writes=True)
        self.value = value

    def update(
        self,
        change: Callable[[Value], Value],
        order: Order = Order.RELAXED,
        *,
        until: Callable[[Value], bool] | None = None,
        label: str = "rmw",
    ) -> Value:
        """Atomic read-modify-write, or a read if `change` gives NO_WRITE; waits for `until`. The old value."""
        world = self.world
        if world.running is not None and self.shared:
            return world.perform(Rmw(self.name, change, order, until, label))
        old = self.value
        if until is not None and not until(old):
            assert world.running is not None, f"'{self.name}' is waited for outside of a task"
            world.accesses.wait_for(self.name)
        new = change(old)
        if world.running is not None:
            world.accesses.note(self.name, world.running.name, writes=new is not NO_WRITE)
            world.alone(self.name)
        if new is not NO_WRITE:
            self.value = new
        return old


class CheckCell(Cell[T], Generic[T]):
    """READ_ONCE, WRITE_ONCE, acquire, release; the rest atomic between two full barriers."""

    __slots__ = ("_word", "_world")

    def __init__(self, world: World, value: T, name: str) -> None:
        self._world = world
        self._word = Word(world, name, world.objects.encode(value))

    def load(self) -> T:
        value = self._word.read()
        return self._decoded(value)

    def store(self, value: T) -> None:
        self._word.write(self._world.objects.encode(value))

    def load_acquire(self) -> T:
        value = self._word.read(Order.ACQUIRE)
        return self._decoded(value)

    def store_release(self, value: T) -> None:
        self._word.write(self._world.objects.encode(value), Order.RELEASE)

    def xchg(self, value: T) -> T:
        new = self._world.objects.encode(value)
        return self._ordered(lambda _old: new, "xchg")

    def cmpxchg(self, old: T, new: T) -> T:
        expected, wanted = self._world.objects.encode(old), self._world.objects.encode(new)
        return self._ordered(lambda value: wanted if value == expected else NO_WRITE, "cmpxchg")

    def fetch_add(self, delta: T) -> T:
        return self._ordered(lambda value: value + delta, "fetch_add")  # type: ignore[operator]

    def _ordered(self, change: Callable[[Value], Value], label: str) -> T:
        value = ordered(self._word, change, label)
        return self._decoded(value)

    def _decoded(self, value: Value) -> T:
        # Read first and decoded after: nothing but variables is on the stack while a task waits (`stacks`).
        return self._world.objects.decode(value)  # type: ignore[return-value]

    def await_value(self, until: Callable[[T], bool], *, may_sleep: bool) -> T:
        """Wait until the value satisfies `until`. `may_sleep`: waiting for ever is no error."""
        decode = self._world.objects.decode
        found = self._world.wait(self._word, lambda value: until(decode(value)), may_sleep)  # type: ignore[arg-type]
        return self._decoded(found)


def ordered(word: Word, change: Callable[[Value], Value], label: str) -> Value:
    """An atomic operation with a full barrier on either side, as the kernel's that return a value."""
    world = word.world
    if word.shared or world.running is None:
        world.full_barrier()
    old = word.update(change, Order.ACQ_REL, label=label)
    if word.shared or world.running is None:
        world.full_barrier()
    return old


class CheckBitmap(Bitmap):
    """Bits of one word; `set` and `clear` are atomic and order nothing."""

    __slots__ = ("_word",)

    def __init__(self, world: World, name: str) -> None:
        self._word = Word(world, name, 0)

    def load(self) -> int:
        value = self._word.read()
        assert isinstance(value, int)
        return value

    def test(self, bit: int) -> bool:
        value = self._word.read()
        return bit_of(value, bit)

    def set(self, bit: int) -> None:
        self._word.update(setter(bit), label=f"set_bit {bit}")

    def clear(self, bit: int) -> None:
        self._word.update(clearer(bit), label=f"clear_bit {bit}")

    def test_and_set(self, bit: int) -> bool:
        old = ordered(self._word, setter(bit), f"test_and_set_bit {bit}")
        return bit_of(old, bit)

    def test_and_clear(self, bit: int) -> bool:
        old = ordered(self._word, clearer(bit), f"test_and_clear_bit {bit}")
        return bit_of(old, bit)


def bit_of(value: Value, bit: int) -> bool:
    """Whether a bit is set."""
    assert isinstance(value, int)
    return bool(value >> bit & 1)


def setter(bit: int) -> Callable[[Value], Value]:
    """What sets a bit."""

    def change(old: Value) -> Value:
        assert isinstance(old, int)
        return old | 1 << bit

    return change


def clearer(bit: int) -> Callable[[Value], Value]:
    """What clears a bit."""

    def change(old: Value) -> Value:
        assert isinstance(old, int)
        return old & ~(1 << bit)

    return change
