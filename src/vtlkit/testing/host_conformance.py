"""What every host must do: one check per promise of `vtlkit.host.api`. Every host passes all of them.

Each check takes a fresh host, spawns its tasks, runs them and raises AssertionError if the promise is broken. Run each
of `HOST_CHECKS` on your host; on one that interleaves tasks by chance, many times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vtlkit.host.api import Cell, Host, LockRank, RunnableHost, Task
from vtlkit.host.ranks import LockOrderError

HostCheck = Callable[[RunnableHost], None]

MS = 1_000_000
SETTLE_NS = 20 * MS
"""Long enough for every other task to have blocked: exact where time is virtual, ample where it is not."""
LIMIT_NS = 30_000 * MS
"""A check on real time that takes longer hangs."""
TASKS = 4
ROUNDS = 25


def run_to_end(host: RunnableHost, *tasks: Task) -> None:
    """Run, and fail if a task is left (a deterministic host says so itself)."""
    host.run(None if host.deterministic else host.now_ns() + LIMIT_NS)
    left = [task.name for task in tasks if not task.done()]
    assert not left, f"tasks that hang: {left}"


def sleep(host: Host, duration_ns: int) -> None:
    """Sleep for a time, woken by nothing else."""
    deadline = host.now_ns() + duration_ns
    queue = host.wait_queue("sleep")
    assert not host.wait_event(queue, lambda: False, interruptible=False, deadline_ns=deadline)
    assert host.now_ns() >= deadline, "a sleep ended before its deadline"


def _spawn_all(host: Host, function: Callable[[int], None], count: int = TASKS) -> list[Task]:
    return [host.spawn(partial(function, index), f"task{index}") for index in range(count)]


# --- cells ----------------------------------------------------------------------------------------------------------


def check_fetch_add(host: RunnableHost) -> None:
    """No addition is lost, and each sees a value of its own."""
    counter = host.cell(0, "counter")
    seen: list[list[int]] = [[] for _ in range(TASKS)]

    def adder(index: int) -> None:
        for _ in range(ROUNDS):
            seen[index].append(counter.fetch_add(1))
            host.relax()

    run_to_end(host, *_spawn_all(host, adder))
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

    run_to_end(host, *_spawn_all(host, adder))
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

    run_to_end(host, *_spawn_all(host, exchanger))
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

    run_to_end(host, *_spawn_all(host, claimer))
    assert sorted(won) == sorted(lost) == list(range(ROUNDS))
    assert bits.load() == 0


# --- locks ----------------------------------------------------------------------------------------------------------


def check_lock_excludes(host: RunnableHost) -> None:
    """At most one task is between acquire and release, also if it loses control there."""
    lock = host.lock("lock")
    inside = 0
    count = 0

    def worker(_: int) -> None:
        nonlocal inside, count
        for _ in range(ROUNDS):
            with lock:
                assert lock.held()
                inside += 1
                assert inside == 1, "two tasks hold the lock"
                before = count
                host.relax()
                count = before + 1
                inside -= 1
            assert not lock.held()

    run_to_end(host, *_spawn_all(host, worker))
    assert count == TASKS * ROUNDS


def check_try_acquire(host: RunnableHost) -> None:
    """`try_acquire` takes a free lock, never waits for a held one, and is not bound by the order."""
    outer, inner = host.lock("outer", LockRank.VM), host.lock("inner", LockRank.VCPU)
    tried = host.cell(False, "tried")
    held = host.cell(False, "held")

    def holder() -> None:
        with inner:
            assert outer.try_acquire()
            held.store_release(True)
            while not tried.load_acquire():
                host.relax()
            outer.release()

    def trier() -> None:
        while not held.load_acquire():
            host.relax()
        assert not outer.try_acquire()
        assert not outer.held()
        tried.store_release(True)

    run_to_end(host, host.spawn(holder, "holder"), host.spawn(trier, "trier"))


def check_lock_order(host: RunnableHost) -> None:
    """A lock of no higher rank than one held is refused with both names; a second take and a foreign release too."""
    low, high = host.lock("low", LockRank.VM), host.lock("high", LockRank.VCPU)
    leaf, other_leaf = host.lock("leaf"), host.rwsem("other_leaf")

    def orders() -> None:
        with low, high, leaf:
            pass
        with high:
            _refused(low.acquire, "low", "high")
        with leaf:
            _refused(other_leaf.down_read, "other_leaf", "leaf")
            _refused(other_leaf.down_write, "other_leaf", "leaf")
            _refused(leaf.acquire, "leaf")
        with other_leaf.reading():
            _refused(other_leaf.down_read, "other_leaf")
        for release in (low.release, other_leaf.up_read, other_leaf.up_write):
            _refused(release)
        with low, high:
            pass

    run_to_end(host, host.spawn(orders, "orders"))


def _refused(call: Callable[[], None], *names: str) -> None:
    text = None
    try:
        call()
    except AssertionError as error:
        text = str(error)
    assert text is not None, f"{call} was not refused"
    assert all(f"'{name}'" in text for name in names), f"{text} does not name {names}"


def check_ending_with_lock(host: RunnableHost) -> None:
    """A task that ends with a lock held fails the run."""
    lock = host.lock("kept")
    host.spawn(lock.acquire, "keeper")
    error = _run_raises(host, LockOrderError)
    assert "'keeper'" in str(error)
    assert "'kept'" in str(error)


def check_rwsem_readers_share(host: RunnableHost) -> None:
    """All readers can be inside together."""
    sem = host.rwsem("sem")
    queue = host.wait_queue("all_inside")
    inside = host.cell(0, "inside")

    def reader(_: int) -> None:
        with sem.reading():
            inside.fetch_add(1)
            queue.wake()
            host.wait_event(queue, lambda: inside.load() == TASKS)

    run_to_end(host, *_spawn_all(host, reader))


def check_rwsem_writer_excludes(host: RunnableHost) -> None:
    """While a writer is inside, nobody else is."""
    sem = host.rwsem("sem")
    readers = host.cell(0, "readers")
    writers = host.cell(0, "writers")

    def worker(index: int) -> None:
        for turn in range(ROUNDS):
            if (turn + index) % 3 == 0:
                with sem.writing():
                    assert writers.fetch_add(1) == 0
                    host.relax()
                    assert readers.load() == 0
                    writers.fetch_add(-1)
            else:
                with sem.reading():
                    readers.fetch_add(1)
                    host.relax()
                    assert writers.load() == 0
                    readers.fetch_add(-1)

    run_to_end(host, *_spawn_all(host, worker))


def check_rwsem_writer_goes_first(host: RunnableHost) -> None:
    """A reader that comes while a writer waits gets in after the writer."""
    for attempt in range(1 if host.deterministic else 5):
        if _writer_went_first(host, attempt):
            return
    raise AssertionError("a reader overtook a waiting writer")


def _writer_went_first(host: RunnableHost, attempt: int) -> bool:
    sem = host.rwsem(f"sem{attempt}")
    order: list[str] = []

    def write() -> None:
        with sem.writing():
            order.append("writer")

    def read() -> None:
        with sem.reading():
            order.append("reader")

    def director() -> None:
        with sem.reading():
            host.spawn(write, "writer")
            sleep(host, SETTLE_NS)
            host.spawn(read, "reader")
            sleep(host, SETTLE_NS)
            assert "writer" not in order, "a writer got in beside a reader"

    run_to_end(host, host.spawn(director, "director"))
    return order == ["writer", "reader"]


# --- sleeping and waking --------------------------------------------------------------------------------------------


def check_no_lost_wake(host: RunnableHost) -> None:
    """A waiter of prepare / check / sleep gets everything that many wakers produce, who wait for that in part."""
    queue = host.wait_queue("work")
    drained = host.wait_queue("drained")
    pending = host.cell(0, "pending")
    total = (TASKS - 1) * ROUNDS

    def waiter() -> None:
        handled = 0
        while handled < total:
            queue.prepare()
            if pending.load() == 0:
                host.schedule()
            handled += pending.xchg(0)
            drained.wake()
        queue.finish()

    def waker(index: int) -> None:
        for turn in range(ROUNDS):
            if turn >= index * ROUNDS // TASKS:
                assert host.wait_event(drained, partial(_holds, pending, 0))
            pending.fetch_add(1)
            queue.wake()

    run_to_end(host, host.spawn(waiter, "waiter"), *_spawn_all(host, waker, TASKS - 1))


def check_ping_pong(host: RunnableHost) -> None:
    """Two tasks that wake each other by turns never both sleep."""
    queue = host.wait_queue("turn")
    turn = host.cell(0, "turn")

    def player(index: int) -> None:
        for round_ in range(ROUNDS):
            expected = 2 * round_ + index
            assert host.wait_event(queue, partial(_holds, turn, expected))
            turn.fetch_add(1)
            queue.wake()

    run_to_end(host, *_spawn_all(host, player, 2))
    assert turn.load() == 2 * ROUNDS


def _holds(cell: Cell[int], value: int) -> bool:
    return cell.load() == value


def check_wake_all(host: RunnableHost) -> None:
    """One wake reaches every sleeper; a condition may take locks."""
    queue = host.wait_queue("gate")
    lock = host.lock("gate_lock")
    is_open = False
    asleep = host.cell(0, "asleep")

    def gate() -> bool:
        with lock:
            host.relax()
            return is_open

    def waiter(_: int) -> None:
        asleep.fetch_add(1)
        assert host.wait_event(queue, gate)

    def opener() -> None:
        nonlocal is_open
        while asleep.load() < TASKS:
            host.relax()
        with lock:
            is_open = True
        queue.wake()

    run_to_end(host, *_spawn_all(host, waiter), host.spawn(opener, "opener"))
    assert queue.waiters() == 0


def check_wake_result(host: RunnableHost) -> None:
    """`wake` says whether it ended a sleep or the preparation for one; `schedule` after it does not block."""
    queue = host.wait_queue("queue")

    def one() -> None:
        assert not queue.wake()
        queue.prepare()
        queue.prepare()
        assert queue.waiters() == 1
        assert queue.wake()
        assert not queue.wake()
        host.schedule()
        queue.finish()
        assert queue.waiters() == 0
        assert not queue.wake()
        host.schedule()

    run_to_end(host, host.spawn(one, "one"))


def check_deadline(host: RunnableHost) -> None:
    """A sleep ends at its deadline, not before; a past deadline does not block; a wake-up in time comes first."""
    queue = host.wait_queue("queue")
    flag = host.cell(False, "flag")

    def sleeper() -> None:
        sleep(host, 3 * MS)
        assert not host.wait_event(queue, lambda: False, deadline_ns=host.now_ns())
        assert host.wait_event(queue, flag.load, deadline_ns=host.now_ns() + LIMIT_NS)

    def waker() -> None:
        sleep(host, SETTLE_NS)
        flag.store(True)
        queue.wake()

    before = host.now_ns()
    run_to_end(host, host.spawn(sleeper, "sleeper"), host.spawn(waker, "waker"))
    assert host.now_ns() - before < LIMIT_NS


def check_signals(host: RunnableHost) -> None:
    """A signal ends an interruptible sleep, whenever it comes, stays pending until taken, and ends no other sleep."""
    queue = host.wait_queue("queue")
    ready = host.cell(False, "ready")
    phase = host.cell(0, "phase")

    def sleeper() -> None:
        task = host.current()
        phase.store(1)
        assert not host.wait_event(queue, lambda: False)
        assert task.signal_pending()
        assert not host.wait_event(queue, lambda: False), "a pending signal did not end the sleep"
        assert task.clear_signal()
        assert not task.clear_signal()
        phase.store(2)
        assert host.wait_event(queue, ready.load, interruptible=False)
        assert ready.load()
        assert task.clear_signal()

    target = host.spawn(sleeper, "sleeper")

    def sender() -> None:
        while phase.load() != 1:
            host.relax()
        target.signal()
        while phase.load() != 2:
            host.relax()
        sleep(host, SETTLE_NS)
        target.signal()
        sleep(host, SETTLE_NS)
        assert not target.done(), "a signal ended an uninterruptible sleep"
        ready.store(True)
        queue.wake()

    run_to_end(host, target, host.spawn(sender, "sender"))


# --- timers ---------------------------------------------------------------------------------------------------------


def check_timers(host: RunnableHost) -> None:
    """Timers fire once, in the order of their deadlines, not early; cancelled ones do not; a restart replaces."""
    fired: list[tuple[str, int]] = []
    base = host.now_ns() + SETTLE_NS

    def record(name: str) -> Callable[[], None]:
        return lambda: fired.append((name, host.now_ns()))

    def user() -> None:
        deadlines = {"third": base + 3 * MS, "first": base + MS, "second": base + 2 * MS, "gone": base + MS}
        timers = {name: host.timer(record(name), name) for name in deadlines}
        timers["third"].start(base)
        for name, deadline in deadlines.items():
            timers[name].start(deadline)
            assert timers[name].armed()
            assert timers[name].deadline_ns() == deadline
        assert timers["gone"].cancel()
        assert not timers["gone"].cancel()
        assert timers["gone"].deadline_ns() is None
        sleep(host, 3 * SETTLE_NS)
        assert [name for name, _ in fired] == ["first", "second", "third"]
        assert all(when >= deadlines[name] for name, when in fired), "a timer fired early"
        assert not any(timer.armed() for timer in timers.values())
        timers["gone"].start(host.now_ns() - 1)
        sleep(host, SETTLE_NS)
        assert fired[-1][0] == "gone", "a past deadline does not fire"

    run_to_end(host, host.spawn(user, "user"))


def check_periodic_timer(host: RunnableHost) -> None:
    """A callback may restart its timer and wake tasks; `cancel` from outside ends it for good."""
    queue = host.wait_queue("ticks")
    ticks = host.cell(0, "ticks")

    def tick() -> None:
        ticks.fetch_add(1)
        queue.wake()
        timer.start(host.now_ns() + MS)

    timer = host.timer(tick, "periodic")

    def user() -> None:
        timer.start(host.now_ns() + MS)
        assert host.wait_event(queue, lambda: ticks.load() >= 3)
        assert timer.cancel()
        after = ticks.load()
        sleep(host, SETTLE_NS)
        assert ticks.load() == after

    run_to_end(host, host.spawn(user, "user"))


def check_interrupt_context(host: RunnableHost) -> None:
    """A callback that takes a lock fails the run."""
    lock = host.lock("lock")
    timer = host.timer(lock.acquire, "taker")

    def user() -> None:
        timer.start(host.now_ns())
        sleep(host, SETTLE_NS)

    host.spawn(user, "user")
    error = _run_raises(host, LockOrderError)
    assert "'lock'" in str(error)
    assert any("'taker'" in note for note in error.__notes__)


# --- tasks ----------------------------------------------------------------------------------------------------------


class _Mishap(Exception):
    pass


def _run_raises(host: RunnableHost, kind: type[BaseException]) -> BaseException:
    try:
        host.run(None if host.deterministic else host.now_ns() + LIMIT_NS)
    except kind as error:
        return error
    raise AssertionError(f"run() did not raise {kind.__name__}")


def check_join(host: RunnableHost) -> None:
    """`join` returns when the task is done, at once if it is; `current` is the calling task; tasks spawn tasks."""
    results: list[str] = []

    def child() -> None:
        sleep(host, MS)
        results.append(host.current().name)

    def parent() -> None:
        task = host.spawn(child, "child")
        task.join()
        assert task.done()
        assert results == ["child"]
        task.join()
        results.append(host.current().name)

    run_to_end(host, host.spawn(parent, "parent"))
    assert results == ["child", "parent"]


def check_exception(host: RunnableHost) -> None:
    """What a task raises ends the others (their `finally` blocks run) and leaves `run` and `join`."""
    ended: list[str] = []
    queue = host.wait_queue("for_ever")

    def sleeper() -> None:
        try:
            host.wait_event(queue, lambda: False)
            ended.append("went on")
        finally:
            ended.append("finally")

    def raiser() -> None:
        sleep(host, SETTLE_NS)
        raise _Mishap

    host.spawn(sleeper, "sleeper")
    task = host.spawn(raiser, "raiser")
    error = _run_raises(host, _Mishap)
    assert any("'raiser'" in note for note in error.__notes__), "the task is not named"
    assert ended == ["finally"]
    assert task.done()
    try:
        task.join()
    except _Mishap:
        return
    raise AssertionError("join() did not raise")


def check_daemon(host: RunnableHost) -> None:
    """A daemon that sleeps for ever does not keep the run alive."""
    queue = host.wait_queue("for_ever")
    host.spawn(lambda: host.schedule() if host.wait_event(queue, lambda: False) else None, "daemon", daemon=True)
    run_to_end(host, host.spawn(lambda: sleep(host, MS), "worker"))
    host.stop()


def check_stop(host: RunnableHost) -> None:
    """`stop` from a task ends the run and the tasks, locks released on the way, without an error."""
    lock = host.lock("lock")
    ended: list[int] = []

    def sleeper(index: int) -> None:
        try:
            with lock:
                sleep(host, LIMIT_NS)
        finally:
            ended.append(index)

    tasks = _spawn_all(host, sleeper)

    def stopper() -> None:
        sleep(host, SETTLE_NS)
        host.stop()

    run_to_end(host, *tasks, host.spawn(stopper, "stopper"))
    assert sorted(ended) == list(range(TASKS))
    assert host.now_ns() < LIMIT_NS


def check_run_until(host: RunnableHost) -> None:
    """`run(until=t)` returns at t with the tasks where they are; a later `run` goes on with them."""
    task = host.spawn(lambda: sleep(host, 2 * SETTLE_NS), "sleeper")
    until = host.now_ns() + SETTLE_NS
    host.run(until=until)
    assert host.now_ns() >= until
    assert not task.done()
    run_to_end(host, task)


def check_choices(host: RunnableHost) -> None:
    """`choose` covers its range and no more; `random_bytes` has the size asked for."""

    def chooser() -> None:
        assert {host.choose(3, "test") for _ in range(200)} == {0, 1, 2}
        assert host.choose(1, "test") == 0
        assert [len(host.random_bytes(size)) for size in (0, 1, 8, 33)] == [0, 1, 8, 33]
        assert len({host.random_bytes(16) for _ in range(20)}) == 20

    run_to_end(host, host.spawn(chooser, "chooser"))


HOST_CHECKS: tuple[HostCheck, ...] = (
    check_fetch_add,
    check_cmpxchg,
    check_xchg,
    check_acquire_release,
    check_bitmap,
    check_lock_excludes,
    check_try_acquire,
    check_lock_order,
    check_ending_with_lock,
    check_rwsem_readers_share,
    check_rwsem_writer_excludes,
    check_rwsem_writer_goes_first,
    check_no_lost_wake,
    check_ping_pong,
    check_wake_all,
    check_wake_result,
    check_deadline,
    check_signals,
    check_timers,
    check_periodic_timer,
    check_interrupt_context,
    check_join,
    check_exception,
    check_daemon,
    check_stop,
    check_run_until,
    check_choices,
)
"""Every check of this module."""
