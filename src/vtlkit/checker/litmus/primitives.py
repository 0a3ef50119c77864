"""The kernel's primitives: what each does, in what order. Names and orders are those of the kernel's own list for LKMM.

The promise: what is not in the table is refused where it is called; no primitive is taken for a weaker or stronger one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from vtlkit.checker.litmus.syntax import Call, Dereference, Expression, LitmusError, Name


class Mark(enum.Enum):
    """How an access is marked. Two marks mean ONCE to LKMM: CONSUME, and RELEASE and ACQUIRE on the wrong half."""

    PLAIN = "plain"
    ONCE = "once"
    ACQUIRE = "acquire"
    RELEASE = "release"
    CONSUME = "consume"
    """`rcu_dereference`: ordered by the address dependency that follows."""
    NORETURN = "noreturn"
    """An atomic without a result: `smp_rmb` does not order its read."""


class Does(enum.Enum):
    """What kind of thing a primitive does."""

    LOAD = enum.auto()
    STORE = enum.auto()
    MODIFY = enum.auto()
    BARRIER = enum.auto()
    LOCK = enum.auto()
    TRYLOCK = enum.auto()
    IS_LOCKED = enum.auto()
    UNLOCK = enum.auto()
    SRCU_LOCK = enum.auto()


PLACE: Final = "*pointer"
POINTER: Final = "pointer"
VALUE: Final = "value"


@dataclass(frozen=True, slots=True)
class Primitive:
    """One of them.

    `parameters` are PLACE, POINTER or VALUE. `operator` is a modification's ("+", "xchg", "cmpxchg", "unless") and
    `full` whether it stands between two full barriers where it writes; `constant` is an operand that is not written
    out, `result` what it gives back: "", "old", "new", "zero" (whether the new value is 0), "negative" or "done".
    `fence` is a barrier's kind, or that of the one behind a store.
    """

    does: Does
    parameters: tuple[str, ...] = ()
    mark: Mark = Mark.ONCE
    operator: str = ""
    full: bool = False
    constant: int | None = None
    result: str = ""
    fence: str = ""

    def normal(self, name: str, arguments: tuple[Expression, ...], line: int) -> Call:
        """The call with the address in the place of `*pointer`. Raises LitmusError where that is none."""
        found: list[Expression] = []
        for kind, argument in zip(self.parameters, arguments, strict=True):
            if kind != PLACE:
                found.append(argument)
            elif isinstance(argument, Dereference):
                found.append(argument.address)
            else:
                hint = f": write *{argument.name}" if isinstance(argument, Name) else ""
                raise LitmusError(line, f"{name}() takes what a pointer points to{hint}")
        return Call(name, tuple(found), line)


_SUFFIXES: Final = (
    ("", Mark.ONCE, True),
    ("_relaxed", Mark.ONCE, False),
    ("_acquire", Mark.ACQUIRE, False),
    ("_release", Mark.RELEASE, False),
)
_ATOMICS: Final = ("atomic", "atomic64", "atomic_long")


def _accesses() -> Iterator[tuple[str, Primitive]]:
    yield "READ_ONCE", Primitive(Does.LOAD, (PLACE,))
    yield "WRITE_ONCE", Primitive(Does.STORE, (PLACE, VALUE))
    yield "smp_load_acquire", Primitive(Does.LOAD, (POINTER,), Mark.ACQUIRE)
    yield "smp_store_release", Primitive(Does.STORE, (POINTER, VALUE), Mark.RELEASE)
    yield "smp_store_mb", Primitive(Does.STORE, (PLACE, VALUE), fence="mb")
    yield "rcu_dereference", Primitive(Does.LOAD, (PLACE,), Mark.CONSUME)
    yield "rcu_assign_pointer", Primitive(Does.STORE, (PLACE, VALUE), Mark.RELEASE)
    for atomic in _ATOMICS:
        yield f"{atomic}_read", Primitive(Does.LOAD, (POINTER,))
        yield f"{atomic}_read_acquire", Primitive(Does.LOAD, (POINTER,), Mark.ACQUIRE)
        yield f"{atomic}_set", Primitive(Does.STORE, (POINTER, VALUE))
        yield f"{atomic}_set_release", Primitive(Does.STORE, (POINTER, VALUE), Mark.RELEASE)


def _barriers() -> Iterator[tuple[str, Primitive]]:
    kinds = {
        "smp_mb": "mb",
        "smp_rmb": "rmb",
        "smp_wmb": "wmb",
        "barrier": "barrier",
        "smp_mb__before_atomic": "before-atomic",
        "smp_mb__after_atomic": "after-atomic",
        "smp_mb__after_spinlock": "after-spinlock",
        "smp_mb__after_unlock_lock": "after-unlock-lock",
        "rcu_read_lock": "rcu-lock",
        "rcu_read_unlock": "rcu-unlock",
        "synchronize_rcu": "sync-rcu",
        "synchronize_rcu_expedited": "sync-rcu",
    }
    for name, fence in kinds.items():
        yield name, Primitive(Does.BARRIER, fence=fence)
    yield "srcu_read_lock", Primitive(Does.SRCU_LOCK, (POINTER,), fence="srcu-lock", result="old")
    yield "srcu_read_unlock", Primitive(Does.BARRIER, (POINTER, VALUE), fence="srcu-unlock")
    yield "synchronize_srcu", Primitive(Does.BARRIER, (POINTER,), fence="sync-srcu")
    yield "synchronize_srcu_expedited", Primitive(Does.BARRIER, (POINTER,), fence="sync-srcu")


def _locks() -> Iterator[tuple[str, Primitive]]:
    yield "spin_lock", Primitive(Does.LOCK, (POINTER,))
    yield "spin_unlock", Primitive(Does.UNLOCK, (POINTER,))
    yield "spin_trylock", Primitive(Does.TRYLOCK, (POINTER,), result="done")
    yield "spin_is_locked", Primitive(Does.IS_LOCKED, (POINTER,), result="old")


def _modifications() -> Iterator[tuple[str, Primitive]]:
    for suffix, mark, full in _SUFFIXES:
        for prefix in ("", *[f"{atomic}_" for atomic in _ATOMICS]):
            exchange = Primitive(Does.MODIFY, (POINTER, VALUE), mark, "xchg", full, None, "old")
            yield f"{prefix}xchg{suffix}", exchange
            swap = Primitive(Does.MODIFY, (POINTER, VALUE, VALUE), mark, "cmpxchg", full, None, "old")
            yield f"{prefix}cmpxchg{suffix}", swap
        for atomic in _ATOMICS:
            for verb, operator in _OPERATORS:
                operands: tuple[tuple[str, tuple[str, ...], int | None], ...] = ((verb, (VALUE, POINTER), None),)
                if verb in _BY_ONE:
                    operands += ((_BY_ONE[verb], (POINTER,), 1),)
                for word, parameters, constant in operands:
                    for name, result in _results(atomic, word, verb):
                        primitive = Primitive(Does.MODIFY, parameters, mark, operator, full, constant, result)
                        yield f"{name}{suffix}", primitive


_OPERATORS: Final = (("add", "+"), ("sub", "-"), ("and", "&"), ("or", "|"), ("xor", "^"), ("andnot", "&~"))
_BY_ONE: Final[Mapping[str, str]] = {"add": "inc", "sub": "dec"}


def _results(atomic: str, word: str, verb: str) -> Iterator[tuple[str, str]]:
    yield f"{atomic}_fetch_{word}", "old"
    if verb in _BY_ONE:
        yield f"{atomic}_{word}_return", "new"


def _other_atomics() -> Iterator[tuple[str, Primitive]]:
    modify, both = Does.MODIFY, (VALUE, POINTER)
    for atomic in _ATOMICS:
        for verb, operator in _OPERATORS:
            yield f"{atomic}_{verb}", Primitive(modify, both, Mark.NORETURN, operator)
            if verb in _BY_ONE:
                yield f"{atomic}_{_BY_ONE[verb]}", Primitive(modify, (POINTER,), Mark.NORETURN, operator, False, 1)
        for word, operator in (("inc", "+"), ("dec", "-")):
            yield f"{atomic}_{word}_and_test", Primitive(modify, (POINTER,), Mark.ONCE, operator, True, 1, "zero")
        yield f"{atomic}_sub_and_test", Primitive(modify, both, Mark.ONCE, "-", True, None, "zero")
        yield f"{atomic}_add_negative", Primitive(modify, both, Mark.ONCE, "+", True, None, "negative")
        unless = (POINTER, VALUE, VALUE)
        yield f"{atomic}_add_unless", Primitive(modify, unless, Mark.ONCE, "unless", True, None, "done")
        yield f"{atomic}_fetch_add_unless", Primitive(modify, unless, Mark.ONCE, "unless", True, None, "old")


def _table() -> dict[str, Primitive]:
    return dict([*_accesses(), *_barriers(), *_locks(), *_modifications(), *_other_atomics()])


PRIMITIVES: Final[Mapping[str, Primitive]] = _table()
"""Name -> what it does."""
