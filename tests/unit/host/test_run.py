"""The simulator's main loop: slices, pre-emption, spinning, greenlets of one task, ending."""

from __future__ import annotations

import pytest
from greenlet import getcurrent, greenlet

from vtlkit.host.api import LockRank
from vtlkit.host.sim import Deadlock, Simulator
from vtlkit.host.sim.run import RELAX_NS
from vtlkit.host.sim.schedulers import ALONE_SLICE_NS


def test_budget_is_bounded_by_the_next_timer() -> None:
    sim = Simulator(slice_ns=1000)
    assert sim.guest_budget_ns() == ALONE_SLICE_NS
    timer = sim.timer(lambda: None, "timer")
    timer.start(300)
    assert sim.guest_budget_ns() == 300
    timer.start(-5)
    assert sim.guest_budget_ns() == 1


def test_fifo_slices_are_used_up_before_others_run() -> None:
    sim = Simulator(slice_ns=1000)
    log: list[str] = []

    def guest() -> None:
        for _ in range(4):
            log.append(sim.current().name)
            assert sim.guest_budget_ns() in (1000, 500)
            sim.consume_ns(500)

    sim.spawn(guest, "a")
    sim.spawn(guest, "b")
    sim.run()
    assert log == ["a", "a", "b", "b", "a", "a", "b", "b"]


def test_seeded_slices_vary_around_the_given_one() -> None:
    sim = Simulator(seed=3, slice_ns=1000)
    budgets: list[int] = []

    def guest() -> None:
        for _ in range(200):
            budgets.append(sim.guest_budget_ns())
            sim.relax()

    sim.spawn(guest, "a")
    sim.spawn(guest, "b")
    sim.run()
    contested = [budget for budget in budgets if budget != ALONE_SLICE_NS]
    assert min(contested) >= 1
    assert max(contested) <= 2000
    assert 800 < sum(contested) / len(contested) < 1200


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_spinning_tasks_reach_a_timer(seed: int | None) -> None:
    sim = Simulator(seed=seed)
    fired: list[int] = []
    sim.timer(lambda: fired.append(sim.now_ns()), "timer").start(10 * RELAX_NS + 7)

    def spinner() -> None:
        while not fired:
            sim.relax()

    for index in range(3):
        sim.spawn(spinner, f"spinner{index}")
    sim.run()
    assert fired == [10 * RELAX_NS + 7]


def test_a_task_resumes_in_the_greenlet_it_left() -> None:
    sim = Simulator()
    queue = sim.wait_queue("answer")
    answered = sim.cell(False, "answered")

    def vcpu() -> None:
        task = sim.current()

        def guest() -> str:
            here = getcurrent()
            assert sim.current() is task
            assert sim.wait_event(queue, answered.load)
            assert getcurrent() is here
            assert sim.current() is task
            return "exit"

        assert greenlet(guest).switch() == "exit"
        assert sim.current() is task

    def device() -> None:
        sim.consume_ns(10)
        answered.store(True)
        queue.wake()

    sim.spawn(vcpu, "vcpu")
    sim.spawn(device, "device")
    sim.run()


@pytest.mark.parametrize("seed", [None, 1])
def test_tasks_that_start_each_other_do_not_nest(seed: int | None) -> None:
    """Each is started while the one before it is suspended, and all of them stay alive."""
    count = 300
    sim = Simulator(seed=seed)
    queue = sim.wait_queue("all_started")
    started: list[int] = []
    ended: list[int] = []

    def task(number: int) -> None:
        started.append(number)
        if number + 1 < count:
            sim.spawn(lambda: task(number + 1), f"task{number + 1}")
        else:
            queue.wake()
        sim.wait_event(queue, lambda: len(started) == count)
        ended.append(number)

    sim.spawn(lambda: task(0), "task0")
    sim.run()
    assert started == list(range(count))
    assert sorted(ended) == started


def test_a_task_may_start_deep_in_the_recursion_of_another() -> None:
    sim = Simulator()
    room = 600

    def descend(depth: int) -> None:
        if depth:
            descend(depth - 1)
        else:
            sim.relax()

    sim.spawn(lambda: descend(room), "first")
    sim.spawn(lambda: descend(room), "second")
    sim.run()


def test_a_task_killed_in_its_guest_greenlet_runs_no_more_code() -> None:
    sim = Simulator()
    queue = sim.wait_queue("for_ever")
    log: list[str] = []

    def vcpu() -> None:
        def guest() -> None:
            sim.wait_event(queue, lambda: False)
            log.append("guest went on")

        try:
            greenlet(guest).switch()
            log.append("vcpu went on")
        finally:
            log.append("finally")

    def stopper() -> None:
        sim.consume_ns(1)
        sim.stop()

    sim.spawn(vcpu, "vcpu")
    sim.spawn(stopper, "stopper")
    sim.run()
    assert log == ["finally"]


def test_a_killed_task_cannot_block_again() -> None:
    sim = Simulator()
    lock = sim.lock("lock")
    log: list[str] = []

    def holder() -> None:
        with lock:
            sim.wait_event(sim.wait_queue("for_ever"), lambda: False)

    def stubborn() -> None:
        try:
            sim.wait_event(sim.wait_queue("for_ever"), lambda: False)
        finally:
            log.append("cleaning")
            sim.consume_ns(5)
            with lock:
                log.append("after the holder")
            sim.schedule()
            sim.wait_event(sim.wait_queue("again"), lambda: False)
            log.append("not reached")

    sim.spawn(holder, "holder")
    sim.spawn(stubborn, "stubborn")
    sim.spawn(sim.stop, "stopper")
    sim.run()
    assert log in (["cleaning"], ["cleaning", "after the holder"])


def test_stop_from_a_timer_and_a_task_that_never_started() -> None:
    sim = Simulator()
    log: list[str] = []
    sim.timer(sim.stop, "stop").start(50)

    def first() -> None:
        sim.spawn(lambda: log.append("ran"), "second")
        sim.consume_ns(100)
        log.append("went on")

    sim.spawn(first, "first")
    sim.run()
    assert log == []
    assert sim.tasks == []
    sim.spawn(lambda: log.append("next run"), "third")
    sim.run()
    assert log == ["next run"]


def test_error_while_being_killed_is_not_lost() -> None:
    sim = Simulator()

    def sleeper() -> None:
        try:
            sim.wait_event(sim.wait_queue("for_ever"), lambda: False)
        finally:
            raise OSError("in clean-up")

    sim.spawn(sleeper, "sleeper")
    sim.spawn(sim.stop, "stopper")
    with pytest.raises(OSError, match="in clean-up"):
        sim.run()


def test_keyboard_interrupt_passes() -> None:
    sim = Simulator()

    def interrupted() -> None:
        raise KeyboardInterrupt

    sim.spawn(interrupted, "task")
    with pytest.raises(KeyboardInterrupt):
        sim.run()


def test_blocking_outside_of_a_task_is_refused() -> None:
    sim = Simulator()
    with pytest.raises(AssertionError, match="outside of a task"):
        sim.wait_event(sim.wait_queue("queue"), lambda: False)


def test_deadlock_report() -> None:
    sim = Simulator()
    lock = sim.lock("vm", LockRank.MEMORY_CHANGE)
    slots = sim.rwsem("slots", LockRank.SLOTS)
    queue = sim.wait_queue("vcpu0.wait")

    def owner() -> None:
        with lock, slots.writing():
            sim.wait_event(queue, lambda: False)

    def wants_lock() -> None:
        sim.consume_ns(700)
        with lock:
            pass

    def idle() -> None:
        sim.wait_event(queue, lambda: False)

    def wants_slots() -> None:
        with slots.reading():
            pass

    target = sim.spawn(owner, "owner")
    sim.spawn(wants_lock, "wants_lock")
    sim.spawn(target.join, "joiner")
    sim.spawn(wants_slots, "wants_slots")
    sim.spawn(idle, "worker", daemon=True)
    with pytest.raises(Deadlock) as caught:
        sim.run()
    head, *lines = str(caught.value).splitlines()
    assert head == "deadlock at 700 ns: no task can run and no timer is armed"
    by_task = {line.split("'")[1]: line for line in lines}
    assert set(by_task) == {"owner", "wants_lock", "joiner", "wants_slots", "worker"}
    assert "waits for wait queue 'vcpu0.wait'" in by_task["owner"]
    assert by_task["owner"].endswith("for 700 ns holding 'vm', 'slots'")
    assert "waits for lock 'vm' (held by 'owner')" in by_task["wants_lock"]
    assert by_task["wants_lock"].endswith("for 0 ns")
    assert "waits for task 'owner' to end" in by_task["joiner"]
    assert "waits for rwsem 'slots' (written by 'owner')" in by_task["wants_slots"]
    assert by_task["worker"].strip().startswith("daemon task")
    line = wants_lock.__code__.co_firstlineno + 2
    assert f"at {__file__}:{line} for" in by_task["wants_lock"]
    assert caught.value.__notes__ == ["replay: fifo:0"]


def test_run_until_without_tasks_fires_timers() -> None:
    sim = Simulator()
    fired: list[int] = []
    for deadline in (10, 20, 30):
        sim.timer(lambda: fired.append(sim.now_ns()), "timer").start(deadline)
    sim.run(until=20)
    assert fired == [10, 20]
    assert sim.now_ns() == 20
    sim.run()
    assert fired == [10, 20]
