"""PAUSE: who spins lets others run, and does not leave the guest each time where there are none."""

from __future__ import annotations

import pytest

from tests.unit.kvm.core_rig import DONE, RESET, Machine, Script, script
from tests.unit.kvm.irqchip_rig import SPIV_ON
from vtlkit.engine.api import Event
from vtlkit.engine.scripted import ops
from vtlkit.x86.msr import X2APIC_ENABLE

WAKE = 0x40


def test_a_guest_that_spins_alone_leaves_once_a_slice() -> None:
    machine = Machine(
        script(*[ops.Pause()] * 50, ops.Compute(1_000_000), ops.Pause(), ops.Pause(), ops.Out(DONE, 1, 0))
    )
    machine.vcpu.run()
    exits = machine.vcpu.statistics.all_exits()
    assert exits["interrupted"] > 1
    assert exits["pause"] == 2


@pytest.mark.parametrize("x2apic", [False, True])
def test_a_guest_that_has_spun_alone_does_not_keep_out_whom_it_wakes(x2apic: bool) -> None:
    """Spinning for the answer to an IPI must not use up the slice in which there was nobody to let run."""
    done = False
    spins = 0

    def sender(_engine: object) -> Script:
        nonlocal spins
        yield ops.Pause()
        yield ops.Compute(100_000)
        yield ops.Pause()
        if x2apic:
            yield ops.Set(0x830, "rcx")
            yield ops.Set(1, "rdx")
            yield ops.Set(WAKE)
            yield ops.Wrmsr()
        else:
            yield ops.Write(0xFEE00310, 4, 1 << 24)
            yield ops.Write(0xFEE00300, 4, WAKE)
        while not done:
            spins += 1
            yield ops.Pause()
        yield ops.Out(DONE, 1, 0)

    def sleeper(_engine: object) -> Script:
        yield ops.Write(0xFEE000F0, 4, SPIV_ON)
        yield ops.Sti()
        yield ops.Hlt()
        yield ops.Out(DONE, 1, 0)

    def handler(_engine: object, _event: Event) -> Script:
        nonlocal done
        done = True
        yield ops.Write(0xFEE000B0, 4, 0)

    machine = Machine(programs={RESET: sender, 0x8000: sleeper}, handlers={WAKE: handler}, vcpus=2)
    if x2apic:
        assert machine.vcpu.apic.set_base(machine.vcpu.apic.get_base() | X2APIC_ENABLE, True)
    machine.vcpus[1].init()
    machine.vcpus[1].deliver_sipi(8)
    machine.run(*[vcpu.run for vcpu in machine.vcpus])
    assert spins < 10


def test_a_guest_that_spins_lets_others_run_each_time() -> None:
    """Whoever waits for another processor does not use up its own slice first."""
    machine = Machine(script(*[ops.Pause()] * 50, ops.Out(DONE, 1, 0)))
    turns: list[int] = []

    def other() -> None:
        for number in range(1000):
            turns.append(number)
            machine.host.relax()

    machine.host.spawn(other, "other", daemon=True)

    def run() -> None:
        machine.vcpu.run()

    machine.host.spawn(run, "vcpu")
    machine.host.run()
    assert machine.vcpu.statistics.all_exits()["pause"] == 50
    assert len(turns) >= 50
