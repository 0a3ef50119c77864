"""Shared words: no update is lost, and releases are seen by acquires."""

from __future__ import annotations

from vtlkit.host.api import RunnableHost
from vtlkit.testing.host_conformance.running import (
    ROUNDS,
    TASKS,
    run_to_end,
    spawn_all,
)


def check_fetch_add(host: RunnableHost) -> None:
    """No addition is lost, and each sees a value of its own."""
    counter = host.cell(0, "counter")
    seen: list[list[int]] = [[] for _ in range(TASKS)]

    def adder(index: int) -> None:
        for _ in range(ROUNDS):
            seen[index].append(counter.fetch_add(1))
            host.relax()

    run_to_end(host, *spawn_all(host, adder))
    assert sorted(value for values in seen for value in values) == list(range(TASKS * ROUNDS))
    assert counter.load() == TASKS * ROUNDS


def check_cmpxchg(host: RunnableHost) -> None:
    """A cmpxchg loop loses no update; a failed one stores nothing."""
    counter = host.cell(0, "counter")

    def adder(_: int) -> None:
        for _ in range(ROUNDS):
            before = counter.load()
            while (found := counter.cmpxchg(before, before + 1)) != before:
                before = found

    run_to_end(host, *spawn_all(host, adder))
    assert counter.load() == TASKS * ROUNDS
    assert counter.cmpxchg(-1, 5) == TASKS * ROUNDS
    assert counter.load() == TASKS * ROUNDS


def check_xchg(host: RunnableHost) -> None:
    """Of tasks that exchange tokens through one cell, none loses and none duplicates one."""
    cell = host.cell(-1, "slot")
    left: list[int] = [-1] * TASKS

    def exchanger(index: int) -> None:
        token = index
        for _ in range(ROUNDS):
            token = cell.xchg(token)
        left[index] = token

    run_to_end(host, *spawn_all(host, exchanger))
    assert sorted([*left, cell.load()]) == list(range(-1, TASKS))


def check_acquire_release(host: RunnableHost) -> None:
    """What was stored before `store_release` is seen after the `load_acquire` that sees it."""
    data = host.cell(0, "data")
    flag = host.cell(False, "flag")

    def reader() -> None:
        while not flag.load_acquire():
            host.relax()
        assert data.load() == 42

    def writer() -> None:
        data.store(42)
        flag.store_release(True)

    run_to_end(host, host.spawn(reader, "reader"), host.spawn(writer, "writer"))


def check_bitmap(host: RunnableHost) -> None:
    """One task wins each bit by test_and_set and one takes it by test_and_clear; neighbours do not suffer."""
    bits = host.bitmap("bits")
    arrived = host.cell(0, "arrived")
    won: list[int] = []
    lost: list[int] = []

    def claimer(index: int) -> None:
        own = 100 + index
        for bit in range(ROUNDS):
            bits.set(own)
            if not bits.test_and_set(bit):
                won.append(bit)
            assert bits.test(own), "another task's bit operation undid this one's"
            bits.clear(own)
        arrived.fetch_add(1)
        while arrived.load() < TASKS:
            host.relax()
        for bit in range(ROUNDS):
            if bits.test_and_clear(bit):
                lost.append(bit)

    run_to_end(host, *spawn_all(host, claimer))
    assert sorted(won) == sorted(lost) == list(range(ROUNDS))
    assert bits.load() == 0
