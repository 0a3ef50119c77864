"""The lock order, asserted (counterpart: lockdep). Shared by both hosts; the ranks are `host.api.LockRank`.

Promise: if every task takes locks in the order of their ranks, no cycle of tasks waits for each other's locks, so a
violation is reported when it happens and not when it deadlocks. The list of held locks belongs to its task alone.
"""

from __future__ import annotations

from typing import Protocol

from vtlkit.host.api import LockRank


class LockOrderError(AssertionError):
    """A task took a lock out of order, took it twice, took it in interrupt context, or ended while it held it."""


class RankedLock(Protocol):
    """What the order knows of a lock."""

    @property
    def name(self) -> str: ...

    @property
    def rank(self) -> LockRank: ...


def check_order(task_name: str, held: list[RankedLock], lock: RankedLock) -> None:
    """Raise `LockOrderError` if a task that holds `held` (sorted by rank) may not wait for `lock`."""
    top = held[-1]
    if top.rank < lock.rank:
        return
    if any(other is lock for other in held):
        raise LockOrderError(f"task '{task_name}' takes '{lock.name}', which it already holds")
    raise LockOrderError(
        f"task '{task_name}' takes '{lock.name}' ({describe_rank(lock)}) "
        f"while it holds '{top.name}' ({describe_rank(top)})"
    )


def add_held(held: list[RankedLock], lock: RankedLock) -> None:
    """Enter a lock that was taken without waiting, which the order does not bind: `held` stays sorted by rank."""
    held.append(lock)
    if len(held) > 1 and held[-2].rank > lock.rank:
        held.sort(key=lambda entry: entry.rank)


def check_none_held(task_name: str, held: list[RankedLock]) -> None:
    """Raise `LockOrderError` if a task that ends still holds a lock."""
    if held:
        names = ", ".join(f"'{lock.name}'" for lock in held)
        raise LockOrderError(f"task '{task_name}' ended while it held {names}")


def describe_rank(lock: RankedLock) -> str:
    return f"rank {lock.rank.name} {int(lock.rank)}"
