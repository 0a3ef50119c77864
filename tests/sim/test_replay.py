"""A run is a function of its token."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlkit.host.api import Host
from vtlkit.host.sim import ReplayDivergence, Simulator

Trace = list[tuple[object, ...]]


def machine(host: Host, trace: Trace) -> None:
    """Three vCPUs that run slices, wake each other, take a lock, draw choices, and a periodic timer."""
    queue = host.wait_queue("queue")
    pending = host.cell(0, "pending")
    lock = host.lock("lock")

    def tick() -> None:
        trace.append(("tick", host.now_ns()))
        pending.fetch_add(1)
        queue.wake()
        if host.now_ns() < 2_000_000:
            timer.start(host.now_ns() + 300_000)

    timer = host.timer(tick, "tick")

    def vcpu() -> None:
        name = host.current().name
        for _ in range(6):
            with lock:
                trace.append((name, "locked", host.now_ns(), host.choose(10, "dice")))
            host.consume_ns(min(host.guest_budget_ns() or 0, 50_000))
            pending.fetch_add(1)
            queue.wake()
            assert host.wait_event(queue, lambda: pending.load() > 0)
            pending.fetch_add(-1)
            trace.append((name, host.now_ns(), host.random_bytes(3)))

    timer.start(100_000)
    for index in range(3):
        host.spawn(vcpu, f"vcpu{index}")


def run(sim: Simulator) -> Trace:
    trace: Trace = []
    machine(sim, trace)
    sim.run()
    return trace


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 64), st.booleans(), st.sampled_from(["fifo", "seed"]), st.integers(1000, 400_000))
def test_seed_and_token_reproduce_the_run(seed: int, instrument: bool, scheduler: str, slice_ns: int) -> None:
    def make(record: bool) -> Simulator:
        return Simulator(seed=seed, scheduler=scheduler, instrument=instrument, slice_ns=slice_ns, record=record)

    first = make(False)
    trace = run(first)
    assert run(make(False)) == trace
    assert first.token().startswith(f"{scheduler}:{seed}")
    assert run(Simulator(replay=first.token())) == trace
    recorded = make(True)
    assert run(recorded) == trace
    replayed = Simulator(replay=recorded.token())
    assert run(replayed) == trace
    assert replayed.token() == recorded.token()


def test_seeds_differ() -> None:
    traces = {repr(run(Simulator(seed=seed))) for seed in range(10)}
    assert len(traces) == 10


def test_a_seed_means_the_same_everywhere() -> None:
    """Pinned: if this changes, every token that anybody wrote down has lost its meaning."""
    sim = Simulator(seed=42)
    order: list[str] = []

    def task() -> None:
        for _ in range(3):
            order.append(sim.current().name)
            sim.relax()

    for name in "abc":
        sim.spawn(task, name)
    sim.run()
    assert "".join(order) == "cabcacbab"


def test_a_changed_program_diverges() -> None:
    recorded = Simulator(seed=1, record=True)
    run(recorded)
    replayed = Simulator(replay=recorded.token())
    machine(replayed, [])
    replayed.spawn(lambda: None, "one_more")
    with pytest.raises(ReplayDivergence, match="choice 0"):
        replayed.run()


def test_a_failure_carries_its_token() -> None:
    def fails(sim: Simulator) -> str:
        def task() -> None:
            if sim.choose(5, "fate") == 0:
                raise KeyError("fate")

        sim.spawn(task, "unlucky")
        sim.run()
        return "survived"

    seed = 0
    while True:
        try:
            fails(Simulator(seed=seed))
        except KeyError as error:
            notes = error.__notes__
            break
        seed += 1
    assert notes == ["in task 'unlucky' at 0 ns", f"replay: seed:{seed}"]
    with pytest.raises(KeyError):
        fails(Simulator(replay=notes[1].removeprefix("replay: ")))


def test_a_source_of_ones_own() -> None:
    class Always:
        """The last alternative, whatever is asked."""

        def draw(self, count: int, label: str, /) -> int:
            return count - 1

    sim = Simulator(source=Always())
    trace = run(sim)
    assert run(Simulator(replay=sim.token())) == trace
