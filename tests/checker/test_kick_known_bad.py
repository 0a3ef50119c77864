"""What is wrong with kick-all or with changes of memory is found by scenarios that pass with the right code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.known_bad import SEEDS, failure
from vtlkit.checker.protocols.altered import Altered, looks_before_its_mode_is_published
from vtlkit.checker.scenarios import Scenario, catalogue, run_seed
from vtlkit.checker.scenarios import kick as kick_scenarios
from vtlkit.checker.scenarios.kick import Watch
from vtlkit.checker.scenarios.memory_transactions import WAYS, Way, kicked, one_by_one, reading_while
from vtlkit.checker.scenarios.rig import Rig, Script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.kvm import wait
from vtlkit.kvm.kick_all import KickAll, KickDesign
from vtlkit.kvm.kvm_run import Intr
from vtlkit.kvm.memory_transactions import MemoryTransactions
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vcpu import Vcpu


def complaint(scenario: str | Scenario, seeds: range = SEEDS) -> str:
    """What the first seed that fails says; nothing if none does."""
    found = catalogue()[scenario] if isinstance(scenario, str) else scenario
    return failure(lambda seed: run_seed(found, seed), seeds) or ""


# --- the request ------------------------------------------------------------------------------------------------------

ALONE = 500
"""Guest instructions of a vCPU that nobody makes leave, before it is called lost."""


class WithoutBudgets(Simulator):
    """As on real threads: a guest runs until something makes it exit."""

    def guest_budget_ns(self) -> None:  # type: ignore[override]
        return None


def kick_an_endless_guest(seed: int, alter: Callable[[Vcpu], None]) -> None:
    host = WithoutBudgets(seed=seed, instrument=True)
    kicked_at = host.cell(False, "kicked")

    def endless(_engine: object) -> Script:
        alone = 0
        while True:
            alone += yield ops.Host(kicked_at.load)
            assert alone < ALONE, "executes on in spite of the kick"

    rig = Rig(host, [endless])
    alter(rig.vcpus[0])

    def kick() -> None:
        Vcpu.kick(rig.vcpus[0])
        kicked_at.store(True)

    rig.vcpus[0].kick = kick  # type: ignore[method-assign]
    exits: list[object] = []

    def kicker() -> None:
        rig.linger(60)
        rig.vm.kick_all_running_vcpus()

    rig.run(lambda: exits.append(rig.vcpus[0].run()), kicker)
    assert [type(exit_) for exit_ in exits] == [Intr]


def test_no_kick_of_an_endless_guest_is_missed() -> None:
    for seed in range(300):
        kick_an_endless_guest(seed, lambda _vcpu: None)


def test_a_kick_looked_for_before_the_mode_is_published_is_caught() -> None:
    def all_seeds() -> None:
        for seed in SEEDS:
            kick_an_endless_guest(seed, looks_before_its_mode_is_published)

    with pytest.raises(AssertionError, match="in spite of the kick"):
        all_seeds()


def test_a_sleeper_that_does_not_look_for_the_kick_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    check = wait.check_block

    def blind(vcpu: Vcpu, *arguments: Any) -> wait.Ended:
        requests = vcpu.requests
        vcpu.requests = Altered(requests, test=lambda bit: bit != Req.USERSPACE_KICK and requests.test(bit))  # type: ignore[assignment]
        try:
            return check(vcpu, *arguments)
        finally:
            vcpu.requests = requests

    monkeypatch.setattr(wait, "check_block", blind)
    assert "rwsem 'vm-running' (read by 'task1')" in complaint("kick.all")


def test_waiting_before_the_requests_are_made_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kick = KickAll.kick

    def waits_first(kicks: KickAll) -> None:
        with kicks.transaction.writing():
            pass
        kick(kicks)

    monkeypatch.setattr(KickAll, "kick", waits_first)
    assert "rwsem 'vm-running' (read by" in complaint("kick.all")


def test_a_vcpu_added_without_the_lock_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(kicks: KickAll, vcpu: Vcpu) -> None:
        kicks._vm.vcpus = [*kicks._vm.vcpus, vcpu]
        if kicks._holds:
            # Here a resume may come between.
            vcpu.make_request(Req.USERSPACE_KICK)

    monkeypatch.setattr(KickAll, "admit", admit)
    assert "vm-vcpu1-wait" in complaint("kick.two-kickers")


# --- clearing early ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", [KickDesign.CLEARED_BY_FIRST_EXIT, KickDesign.CLEARED_BEFORE_UNLOCK])
def test_a_request_that_does_not_hold_lets_a_hole_be_seen(design: KickDesign) -> None:
    """Consumed, and `run` called again: the guest is in the middle of the changes."""

    def changed(host: RunnableHost) -> None:
        def way(rig: Rig, steps: list[MemoryRegion]) -> None:
            rig.vm.set_kick_design(design)
            kicked(rig, steps)

        reading_while(host, (way,))

    assert "a hole: Mmio" in complaint(Scenario("memory.cleared-early", "", changed))


def test_a_request_that_does_not_hold_is_not_called_sticky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kick_scenarios, "_DESIGNS", (KickDesign.STICKY,))
    monkeypatch.setattr(KickAll, "has_to_leave", lambda _kicks, vcpu: vcpu.check_request(Req.USERSPACE_KICK))
    assert "executes while it is kicked" in complaint("kick.all")


def test_coming_back_before_the_kicker_waits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLEARED_BY_FIRST_EXIT as it was proposed."""
    monkeypatch.setattr(kick_scenarios, "_DESIGNS", (KickDesign.CLEARED_BY_FIRST_EXIT,))
    monkeypatch.setattr(KickAll, "_kicker_waits", lambda _kicks: False)
    assert "rwsem 'vm-running' (read by 'task1')" in complaint("kick.all")


def test_clearing_the_requests_of_another_kicker_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLEARED_BEFORE_UNLOCK by a kicker that does not count those that are under way."""
    kick = KickAll.kick

    def clears_all(kicks: KickAll) -> None:
        count = kicks._kicking
        # What decides at the end sees nobody else.
        kicks._kicking = Altered(count, load=lambda: 0)  # type: ignore[assignment]
        kick(kicks)

    monkeypatch.setattr(KickAll, "kick", clears_all)

    def two_kickers(host: RunnableHost) -> None:
        def sleepy(_engine: object) -> Script:
            while True:
                yield ops.Hlt()

        rig = Rig(host, [sleepy])
        rig.vm.set_kick_design(KickDesign.CLEARED_BEFORE_UNLOCK)
        through = host.cell(0, "kickers-through")

        def user() -> None:
            while through.load() < 2:
                rig.vcpus[0].run()

        def kicker() -> None:
            rig.linger(40)
            rig.vm.kick_all_running_vcpus()
            if through.fetch_add(1) == 1:
                rig.vcpus[0].signal()

        rig.run(user, kicker, kicker)

    scenario = Scenario("kick.two-early", "", two_kickers)
    assert "rwsem 'vm-running' (read by" in complaint(scenario)
    monkeypatch.setattr(KickAll, "kick", kick)
    assert not complaint(scenario, range(500))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_slots_changed_one_by_one_show_the_hole() -> None:
    assert "a hole: Mmio" in complaint(
        Scenario("memory.one-by-one", "", lambda host: reading_while(host, (one_by_one,)))
    )


@pytest.mark.parametrize("way", WAYS)
def test_each_way_alone_shows_none(way: Way) -> None:
    assert not complaint(Scenario("memory.one-way", "", lambda host: reading_while(host, (way,))), range(200))


def test_attributes_that_wait_for_a_transaction_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vCPU that waits inside `run` for an owner that kicks all vCPUs; where ranks are not asked, it is a deadlock."""
    change = MemoryTransactions.set_attributes

    def waits(transactions: MemoryTransactions, *arguments: Any) -> None:
        if transactions.mine():
            change(transactions, *arguments)
            return
        transactions.begin()
        change(transactions, *arguments)
        transactions.commit()

    monkeypatch.setattr(MemoryTransactions, "set_attributes", waits)
    assert "takes 'vm-memory-transaction' (rank MEMORY_CHANGE 9) while it holds 'vm-running'" in complaint(
        "memory.exclusion"
    )


def test_the_watch_sees_what_it_is_to_see() -> None:
    watch = Watch(Simulator(), 1)
    watch.calls[0] = 1
    watch.check(0)
    watch.floor[0].store(1)
    with pytest.raises(AssertionError, match=r"not left its 1\. run"):
        watch.check(0)
    watch.calls[0] = 2
    watch.out.store(1)
    with pytest.raises(AssertionError, match="executes while it is kicked"):
        watch.check(0)
