"""Virtual time and its timers, against a plain model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtlkit.host.alarms import NEVER
from vtlkit.host.sim import Simulator
from vtlkit.host.sim.clock import Clock, SimTimer

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 5), st.integers(-20, 60)),
        st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("advance"), st.just(0), st.integers(0, 40)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_timers_fire_as_the_model_says(operations: list[tuple[str, int, int]]) -> None:
    clock = Clock(lambda error, where: None)
    fired: list[tuple[int, int]] = []
    timers = [SimTimer(clock, lambda index=index: fired.append((index, clock.now)), str(index)) for index in range(6)]  # type: ignore[misc]
    armed: dict[int, tuple[int, int]] = {}
    expected: list[tuple[int, int]] = []
    now = order = 0
    for name, index, amount in operations:
        if name == "start":
            order += 1
            timers[index].start(now + amount)
            armed[index] = (now + amount, order)
        elif name == "cancel":
            assert timers[index].cancel() == (index in armed)
            armed.pop(index, None)
        else:
            target = now + amount
            for due, (deadline, _) in sorted(armed.items(), key=lambda item: item[1]):
                if deadline <= target:
                    now = max(now, deadline)
                    expected.append((due, now))
                    del armed[due]
            now = target
            clock.advance(target)
        assert fired == expected
        assert clock.now == now
        assert clock.next == min((deadline for deadline, _ in armed.values()), default=NEVER)
        assert [timer.deadline_ns() for timer in timers] == [armed[i][0] if i in armed else None for i in range(6)]


def test_restarted_timers_do_not_pile_up() -> None:
    clock = Clock(lambda error, where: None)
    timer = SimTimer(clock, lambda: None, "tsc_deadline")
    for deadline in range(10_000, 20_000):
        timer.start(deadline)
    assert len(clock) < 200
    assert clock.next == 19_999


def test_consumed_time_fires_each_timer_at_its_own_deadline() -> None:
    sim = Simulator()
    fired: list[int] = []

    def tick() -> None:
        fired.append(sim.now_ns())
        if len(fired) < 4:
            timer.start(sim.now_ns() + 100)

    timer = sim.timer(tick, "tick")

    def task() -> None:
        timer.start(sim.now_ns() + 100)
        sim.consume_ns(1000)
        assert fired == [100, 200, 300, 400]
        assert sim.now_ns() == 1000

    sim.spawn(task, "task")
    sim.run()


def test_failing_callback_leaves_run_even_if_the_task_would_catch_it() -> None:
    sim = Simulator()

    def explode() -> None:
        raise KeyError("boom")

    sim.timer(explode, "bomb").start(10)
    passed: list[str] = []

    def task() -> None:
        try:
            sim.consume_ns(100)
            passed.append("went on")
        except KeyError:
            passed.append("caught")

    sim.spawn(task, "task")
    with pytest.raises(KeyError) as caught:
        sim.run()
    assert caught.value.__notes__ == ["in timer 'bomb' at 10 ns", "replay: fifo:0"]
    assert passed == []
