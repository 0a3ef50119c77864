"""`Vcpu.translate2` over garbage: no table crashes it, an independent walk agrees, and writers may race it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.sim.test_vtl_switch import simulator
from tests.unit.kvm.core_rig import RAM_SIZE
from tests.unit.kvm.translate_rig import PAGES, TranslateRig
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm import translate
from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.uapi import TranslateFault
from vtlkit.x86.paging import EntryUpdate

RESULTS = {"valid", "bits not set", *(fault.name for fault in TranslateFault if fault is not TranslateFault.NONE)}


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_no_table_crashes_it_and_an_independent_walk_agrees(first: int) -> None:
    """The harness does a million: `translate-garbage`."""
    found: set[str] = set()
    for seed in range(first, first + 10):
        rig = TranslateRig(seed)
        rig.run(2_000, check_each=5)
        found |= set(rig.found)
        assert rig.checked == 400
    assert found == RESULTS


def scribble(rig: TranslateRig, turns: int) -> None:
    """Entries change under the walk."""
    for _ in range(turns):
        at = rig.random.randrange(0, RAM_SIZE, 8)
        rig.machine.vm.memory.write(at, (rig.random.choice(PAGES) | 7).to_bytes(8, "little"))


def test_tables_that_change_under_the_walk() -> None:
    """Every look at memory is a point at which the writer may go first."""
    found: set[str] = set()
    for seed in range(12):
        rig = TranslateRig(seed, simulator(seed))
        rig.machine.run(partial(rig.run, 100), partial(scribble, rig, 400))
        found |= set(rig.found)
    assert found >= RESULTS - {"bits not set"}


def test_tables_that_change_under_the_walk_on_threads() -> None:
    with ThreadHost() as host:
        rig = TranslateRig(1, host)
        rig.machine.run(lambda: rig.run(4_000), lambda: scribble(rig, 10_000))
        assert sum(rig.found.values()) >= 4_000


# --- the tester -------------------------------------------------------------------------------------------------------


def read_without_rights(self: translate._Tables, gpa: int, size: int) -> int | None:
    """A table in a page that is hidden from the guest is followed."""
    try:
        return int.from_bytes(self._memory.read(gpa, size), "little")
    except GuestMemoryError:
        return None


def mark_without_rights(self: translate._Tables, update: EntryUpdate) -> int:
    """Bits are set where the guest may not write."""
    found = self._memory.find(update.gpa)
    assert found is not None
    block, offset, _, _ = found
    block.view[offset : offset + update.size] = update.new.to_bytes(update.size, "little")
    return translate._WRITTEN


def always_there(_self: GuestMemory, _gpa: int) -> bool:
    """What is forbidden and what is nowhere are one."""
    return True


@pytest.mark.parametrize(
    ("what", "bad"),
    [("read", read_without_rights), ("exchange", mark_without_rights), ("exists", always_there)],
)
def test_a_broken_walker_is_found(monkeypatch: pytest.MonkeyPatch, what: str, bad: Callable[..., Any]) -> None:
    monkeypatch.setattr(translate._Tables, what, bad)

    def caught(seed: int) -> bool:
        try:
            TranslateRig(seed).run(400, check_each=2)
        except AssertionError:
            return True
        return False

    assert any(caught(seed) for seed in range(20))
