"""The kernel's vocabulary orders what the kernel's does, and no more: litmus shapes with one primitive in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vtlkit.checker.check import check
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.kernel import Kernel, Sleeper, Srcu, Variable
from vtlkit.checker.ops import Order
from vtlkit.checker.result import ProblemKind, Verdict
from vtlkit.host.api import Host
from vtlkit.host.sim import Simulator

Build = Callable[[Host], None]
Between = Callable[[Kernel, Variable], object]
"""What stands between a task's two accesses; the variable is another one, which both tasks touch."""


def allowed(build: Build, model: str) -> bool:
    """Whether the outcome that `build` asserts against can happen."""
    result = check(HostedProgram(build, model), model)
    if result.counterexample is not None:
        assert result.counterexample.kind is ProblemKind.ASSERTION
    else:
        assert result.verdict is Verdict.PROVED
    return result.counterexample is not None


def both(host: Host, kernel: Kernel, tasks: list[Callable[[], object]], bad: tuple[object, ...]) -> None:
    """Run these; whoever ends last asserts that they have not come to `bad`."""
    ended = kernel.word("ended")
    seen = [kernel.word(f"seen{number}", "nothing") for number in range(len(tasks))]

    def body(number: int) -> None:
        found = tasks[number]()
        seen[number].write_once(found)
        before = ended.fetch_add(1)
        if before == len(tasks) - 1:
            first = seen[0].read_once()
            last = seen[1].read_once()
            assert (first, last) != bad, "it can happen"

    for number in range(len(tasks)):
        host.spawn(lambda number=number: body(number), f"task {number}")  # type: ignore[misc]


def store_buffering(between: Between) -> Build:
    def build(host: Host) -> None:
        kernel = Kernel(host)
        x, y, other = kernel.word("x"), kernel.word("y"), kernel.word("other")

        def task(mine: Variable, theirs: Variable) -> object:
            mine.write_once(1)
            between(kernel, other)
            return theirs.read_once()

        both(host, kernel, [lambda: task(x, y), lambda: task(y, x)], (0, 0))

    return build


def inc_then_barrier(kernel: Kernel, other: Variable) -> None:
    other.inc()
    kernel.smp_mb_after_atomic()


def barrier_then_set(kernel: Kernel, other: Variable) -> None:
    kernel.smp_mb_before_atomic()
    other.set_bit(3)


SB: list[tuple[str, Between, bool, bool]] = [
    # name, between, allowed under TSO, allowed under RC11
    ("nothing", lambda _kernel, _other: None, True, True),
    ("smp_mb", lambda kernel, _other: kernel.smp_mb(), False, False),
    ("smp_wmb", lambda kernel, _other: kernel.smp_wmb(), True, True),
    ("smp_rmb", lambda kernel, _other: kernel.smp_rmb(), True, True),
    ("atomic_inc", lambda _kernel, other: other.inc(), False, True),
    ("atomic_inc, smp_mb__after_atomic", inc_then_barrier, False, False),
    ("smp_mb__before_atomic, set_bit", barrier_then_set, False, False),
    ("smp_mb__after_atomic alone", lambda kernel, _other: kernel.smp_mb_after_atomic(), True, False),
    ("atomic_fetch_add", lambda _kernel, other: other.fetch_add(1), False, False),
    ("atomic_fetch_add_relaxed", lambda _kernel, other: other.fetch_add(1, Order.RELAXED), False, True),
    ("atomic_fetch_add_acquire", lambda _kernel, other: other.fetch_add(1, Order.ACQUIRE), False, True),
    ("xchg", lambda _kernel, other: other.xchg(1), False, False),
    ("cmpxchg that fails", lambda _kernel, other: other.cmpxchg(7, 8), False, True),
    ("set_bit", lambda _kernel, other: other.set_bit(0), False, True),
    ("clear_bit", lambda _kernel, other: other.clear_bit(0), False, True),
    ("test_and_set_bit", lambda _kernel, other: other.test_and_set_bit(0), False, False),
    ("test_and_clear_bit", lambda _kernel, other: other.test_and_clear_bit(0), False, False),
    ("test_bit", lambda _kernel, other: other.test_bit(0), True, True),
    ("smp_store_mb", lambda _kernel, other: other.store_mb(1), False, False),
    ("smp_store_release", lambda _kernel, other: other.store_release(1), True, True),
]


@pytest.mark.parametrize(("between", "tso", "rc11"), [row[1:] for row in SB], ids=[row[0] for row in SB])
def test_store_buffering(between: Between, tso: bool, rc11: bool) -> None:
    build = store_buffering(between)
    found = {model: allowed(build, model) for model in ("sc", "tso", "rc11")}
    assert found == {"sc": False, "tso": tso, "rc11": rc11}


def test_a_cmpxchg_that_succeeds_is_a_full_barrier() -> None:
    def build(host: Host) -> None:
        kernel = Kernel(host)
        x, y = kernel.word("x"), kernel.word("y")
        locks = kernel.word("lock0"), kernel.word("lock1")

        def task(number: int, mine: Variable, theirs: Variable) -> object:
            mine.write_once(1)
            got = locks[number].cmpxchg(0, 1)
            assert got == 0
            return theirs.read_once()

        def look() -> None:
            # So that both words are shared.
            locks[0].read_once()
            locks[1].read_once()

        both(host, kernel, [lambda: task(0, x, y), lambda: task(1, y, x)], (0, 0))
        host.spawn(look, "look")

    assert not any(allowed(build, model) for model in ("sc", "tso", "rc11"))


Publish = Callable[[Kernel, Variable], object]
Receive = Callable[[Kernel, Variable], object]


def message(publish: Publish, receive: Receive) -> Build:
    def build(host: Host) -> None:
        kernel = Kernel(host)
        data, flag = kernel.word("data"), kernel.word("flag")

        def send() -> object:
            data.write_once(1)
            publish(kernel, flag)
            return 0

        def take() -> object:
            found = receive(kernel, flag)
            if not found:
                return 1
            return data.read_once()

        both(host, kernel, [send, take], (0, 0))

    return build


def wmb(kernel: Kernel, flag: Variable) -> None:
    kernel.smp_wmb()
    flag.write_once(1)


def rmb(kernel: Kernel, flag: Variable) -> object:
    value = flag.read_once()
    kernel.smp_rmb()
    return value


def once(_kernel: Kernel, flag: Variable) -> object:
    return flag.read_once()


MP: list[tuple[str, Publish, Receive, bool]] = [
    ("nothing", lambda _kernel, flag: flag.write_once(1), once, True),
    ("smp_wmb, smp_rmb", wmb, rmb, False),
    ("smp_wmb alone", wmb, once, True),
    ("smp_rmb alone", lambda _kernel, flag: flag.write_once(1), rmb, True),
    ("release, acquire", lambda _k, flag: flag.store_release(1), lambda _k, flag: flag.load_acquire(), False),
    ("set_bit, acquire", lambda _k, flag: flag.set_bit(0), lambda _k, flag: flag.load_acquire(), True),
    ("test_and_set_bit, acquire", lambda _k, flag: flag.test_and_set_bit(0), lambda _k, f: f.load_acquire(), False),
]


@pytest.mark.parametrize(("publish", "receive", "rc11"), [row[1:] for row in MP], ids=[row[0] for row in MP])
def test_message_passing(publish: Publish, receive: Receive, rc11: bool) -> None:
    build = message(publish, receive)
    found = {model: allowed(build, model) for model in ("sc", "tso", "rc11")}
    assert found == {"sc": False, "tso": False, "rc11": rc11}


def test_clear_bit_unlock_releases() -> None:
    def unlock(_kernel: Kernel, flag: Variable) -> None:
        flag.clear_bit_unlock(1)

    def cleared(_kernel: Kernel, flag: Variable) -> object:
        value = flag.load_acquire()
        assert isinstance(value, int)
        return not value

    def build(host: Host, how: Publish) -> None:
        kernel = Kernel(host)
        data, flag = kernel.word("data"), kernel.word("flag", 2)

        def send() -> object:
            data.write_once(1)
            how(kernel, flag)
            return 0

        def take() -> object:
            found = cleared(kernel, flag)
            return data.read_once() if found else 1

        both(host, kernel, [send, take], (0, 0))

    assert not allowed(lambda host: build(host, unlock), "rc11")
    assert allowed(lambda host: build(host, lambda _kernel, flag: flag.clear_bit(1)), "rc11")


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_protects_plain_data_and_a_trylock_that_fails_orders_nothing() -> None:
    def build(host: Host, *, locked: bool) -> None:
        kernel = Kernel(host)
        lock, data = kernel.spinlock("lock"), kernel.word("data")

        def task() -> None:
            if locked:
                lock.lock()
            value = data.read()
            assert isinstance(value, int)
            data.write(value + 1)
            if locked:
                lock.unlock()

        host.spawn(task, "one")
        host.spawn(task, "other")

    for model in ("sc", "tso", "rc11"):
        assert check(HostedProgram(lambda host: build(host, locked=True), model), model).counterexample is None
        found = check(HostedProgram(lambda host: build(host, locked=False), model), model).counterexample
        assert found is not None
        assert found.kind is ProblemKind.DATA_RACE


def test_trylock_takes_a_free_lock_and_no_other() -> None:
    def build(host: Host) -> None:
        kernel = Kernel(host)
        lock, inside = kernel.spinlock("lock"), kernel.word("inside")

        def task() -> None:
            got = lock.trylock()
            if got:
                before = inside.fetch_add(1)
                assert before == 0, "two hold it"
                inside.fetch_add(-1)
                lock.unlock()
            else:
                lock.is_locked()

        host.spawn(task, "one")
        host.spawn(task, "other")

    for model in ("sc", "tso", "rc11"):
        assert check(HostedProgram(build, model), model).verdict is Verdict.PROVED


# --- SRCU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sc", "tso", "rc11"])
@pytest.mark.parametrize("waits", [True, False])
def test_a_grace_period_outlasts_the_readers_that_began_before(model: str, waits: bool) -> None:
    def build(host: Host) -> None:
        kernel = Kernel(host)
        srcu, pointer, freed = kernel.srcu("srcu"), kernel.word("pointer", 1), kernel.word("freed")

        def reader(srcu: Srcu) -> None:
            for _ in range(2):
                index = srcu.read_lock()
                there = pointer.read_once()
                if there:
                    gone = freed.read_once()
                    assert not gone, "used after it was freed"
                srcu.read_unlock(index)

        def writer() -> None:
            pointer.write_once(0)
            if waits:
                srcu.synchronize()
            freed.write_once(1)

        host.spawn(lambda: reader(srcu), "reader")
        host.spawn(writer, "writer")

    assert allowed(build, model) is not waits


# --- sleeping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sc", "tso", "rc11"])
def test_a_signal_ends_a_sleep_and_a_wake_up_without_a_condition_does_not(model: str) -> None:
    def build(host: Host, *, signal: bool) -> None:
        kernel = Kernel(host)
        sleeper = kernel.sleeper("task")

        def sleep(sleeper: Sleeper) -> None:
            sleeper.prepare()
            while True:
                sleeper.set_current_state()
                pending = sleeper.signal_pending()
                if pending:
                    break
                sleeper.schedule()
            sleeper.finish()

        host.spawn(lambda: sleep(sleeper), "sleeper")

        def wake() -> None:
            sleeper.wake_up()

        host.spawn(sleeper.send_signal if signal else wake, "waker")

    assert check(HostedProgram(lambda host: build(host, signal=True), model), model).verdict is Verdict.PROVED
    found = check(HostedProgram(lambda host: build(host, signal=False), model), model).counterexample
    assert found is not None
    assert found.kind in (ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP)


def test_an_interrupt_reaches_the_guest_with_what_was_stored_before() -> None:
    def build(host: Host) -> None:
        kernel = Kernel(host)
        processor, data = kernel.processor("cpu"), kernel.word("data")

        def vcpu() -> None:
            processor.run_guest(may_sleep=False)
            seen = data.read_once()
            assert seen == 1

        def sender() -> None:
            data.write_once(1)
            processor.send_ipi()

        host.spawn(vcpu, "vcpu")
        host.spawn(sender, "sender")

    for model in ("sc", "tso", "rc11"):
        assert check(HostedProgram(build, model), model).verdict is Verdict.PROVED


def test_models_run_on_the_checking_host_alone() -> None:
    with pytest.raises(TypeError, match="checking host"):
        Kernel(Simulator(seed=0))
