"""Kicks on real threads and real engines: none is lost, and a lost one is noticed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from tests.conformance import devkvm_here
from vtlkit.checker.kicks import catalogue
from vtlkit.checker.kicks.engines import engines
from vtlkit.checker.kicks.guests import VECTORS
from vtlkit.checker.kicks.runner import Tally, run
from vtlkit.checker.kicks.world import Place
from vtlkit.cli.stress_kicks import MAX_CPUS
from vtlkit.engine.api import Engine, EngineFactory, Exit
from vtlkit.kvm.lapic_core import LapicCore
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm

KICKS = int(os.environ.get("VTLKIT_STRESS_KICKS", "100"))
CPUS = 5
"""One for each kind of guest."""
PATIENCE_NS = 60_000_000_000
"""For kicks that are answered: however busy the machine is."""
SOON_NS = 200_000_000
"""For kicks that are not."""
MANY = 100_000


@pytest.fixture(params=["unicorn", "kvm"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "kvm" and (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    return name


def _last(name: str, factory: EngineFactory, kicks: int, cpus: int, patience_ns: int) -> Tally:
    *_, last = run(catalogue()[name], factory, kicks=kicks, vcpus=cpus, patience_ns=patience_ns)
    return last


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_no_kick_is_lost(name: str, engine: str) -> None:
    tally = _last(name, engines(engine), KICKS, 2 if name == "suspend" else CPUS, PATIENCE_NS)
    assert (tally.failure, tally.lost) == (None, 0)
    assert tally.kicks >= KICKS
    assert tally.found.total() == tally.kicks


def test_kicks_find_processors_everywhere() -> None:
    tally = _last("request", engines("unicorn"), 300, CPUS, PATIENCE_NS)
    assert set(tally.found) == set(Place)


class Forgetful:
    """Engines with the race that a signal has against KVM_RUN without `immediate_exit`: a kick after the look for kicks
    and before the guest is entered does nothing."""

    name = "forgetful"

    def __init__(self, real: EngineFactory) -> None:
        self._real = real

    def create(self, vcpu_name: str) -> Engine:
        engine = self._real.create(vcpu_name)
        run, kick = engine.run, engine.kick
        inside = False

        def late_run(budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
            nonlocal inside
            os.sched_yield()
            inside = True
            try:
                return run(budget, force_immediate_exit=force_immediate_exit)
            finally:
                inside = False

        def lossy_kick() -> None:
            if inside:
                kick()

        setattr(engine, "run", late_run)  # noqa: B010 - a method of this one alone
        setattr(engine, "kick", lossy_kick)  # noqa: B010
        return engine

    def counts_instructions(self) -> bool:
        return False

    def close(self) -> None:
        self._real.close()


@pytest.mark.parametrize("name", ["request", "signal"])
def test_a_kick_that_an_entry_swallows_is_lost(name: str, engine: str) -> None:
    tally = _last(name, Forgetful(engines(engine)), MANY, 1, SOON_NS)
    assert tally.lost
    assert tally.failure is not None
    assert "of vCPU 0, which spins (" in tally.failure
    assert tally.failure.endswith("it took a second kick")
    assert tally.kicks < MANY


def _kick_without_waking(vcpu: Vcpu) -> None:
    vcpu.kick_running()


def _never_unblock(vcpu: Vcpu, request: Req) -> None:
    if request is not Req.UNBLOCK:
        vcpu.requests.set(request)


@pytest.mark.parametrize(
    ("name", "method", "broken", "complaint"),
    [
        ("interrupt", "kick", _kick_without_waking, "it took a second kick"),
        ("wait", "kick", _kick_without_waking, "it took a second kick"),
        ("suspend", "make_request", _never_unblock, "a second kick was in vain, too"),
    ],
)
def test_a_wake_that_does_not_wake_is_lost(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str, broken: Callable[..., None], complaint: str
) -> None:
    monkeypatch.setattr(Vcpu, method, broken)
    tally = _last(name, engines("unicorn"), MANY, 2, SOON_NS)
    assert tally.lost
    assert tally.failure is not None
    assert tally.failure.endswith(complaint)


def test_a_processor_that_goes_on_while_it_is_kicked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("kick_all_running_vcpus", "resume_all_kicked_vcpus"):
        monkeypatch.setattr(Vm, method, lambda _vm: None)
    tally = _last("kick-all", engines("unicorn"), MANY, 1, PATIENCE_NS)
    assert tally.lost == 0
    assert tally.failure is not None
    assert tally.failure.endswith("has executed while it was kicked")


def test_an_interrupt_that_is_taken_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    once = LapicCore.get_interrupt
    again: list[int] = []

    def twice(apic: LapicCore) -> int:
        vector = once(apic)
        if vector == VECTORS[0] and not again:
            again.append(vector)
            apic.irr.set(vector)
        return vector

    monkeypatch.setattr(LapicCore, "get_interrupt", twice)
    tally = _last("interrupt", engines("unicorn"), MANY, 1, PATIENCE_NS)
    assert tally.failure == "AssertionError: vCPU 0, which halts: an interrupt was taken twice"


def test_what_is_closed_early_leaves_no_thread() -> None:
    before = threading.enumerate()
    running = run(catalogue()["request"], engines("unicorn"), kicks=MANY, vcpus=CPUS, patience_ns=PATIENCE_NS)
    next(running)
    own = [thread for thread in threading.enumerate() if thread not in before]
    assert own
    running.close()
    for thread in own:
        thread.join(PATIENCE_NS / 1e9)
        assert not thread.is_alive()


def test_as_many_processors_as_can_be_asked_for() -> None:
    tally = _last("wait", engines("unicorn"), 1, MAX_CPUS, PATIENCE_NS)
    assert tally.failure is None
    assert tally.kicks >= MAX_CPUS
