"""Resets and suspends: what is left of VTLs and of memory, on one processor and on several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.scripted_machine import LONG_NS, WAKING_VECTOR, ScriptedMachine, spin
from tests.unit.vmm.vsm.vsm_rig import FREE, PAGE, Guest, Script
from vtlkit.engine.scripted import ops
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.vmm.devices.acpi_pm import PM1_CONTROL_PORT, SLP_EN, SLP_TYP_SHIFT
from vtlkit.vmm.machine import Machine, Outcome, RunResult

SECRET = 0x5EC2E7


RESETS: dict[str, Callable[[Guest], Script]] = {
    "0xcf9": lambda guest: _out(0xCF9, 6),
    "i8042": lambda guest: _out(0x64, 0xFE),
    "HV_X64_MSR_RESET": lambda guest: guest.wrmsr(0x40000003, 1),
}


def _out(port: int, value: int, size: int = 1) -> Script:
    yield ops.Out(port, size, value)
    yield from spin()


def reset_and_boot_again(
    tmp_path: Path, how: Any, *, from_vtl: int = 0, host: RunnableHost | None = None, cpus: int = 1, config: int = 0x3F
) -> tuple[ScriptedMachine, RunResult]:
    """Boot, enable VTL 1, have it protect a secret, reset; boot again and look at what there is."""

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_assist_page()
        yield from guest.enable_synic()
        assert (yield from guest.set(Name.HvRegisterVsmPartitionConfig, config)) == HvStatus.SUCCESS
        guest.rig.write(FREE, SECRET.to_bytes(8, "little"))
        yield from guest.protect([FREE], 0)
        if from_vtl == 1:
            yield from RESETS[how](guest)
        yield from guest.vtl_return()

    def vtl0(guest: Guest) -> Script:
        boots = guest.rig.log
        boots.append("boot")
        partition = guest.rig.partition
        assert (yield from guest.get(Name.HvRegisterVsmPartitionStatus))[1] & 0xFFFF == 1
        assert (yield from guest.get(Name.HvRegisterVsmVpStatus))[1] == 1 << 16
        assert int(partition.vtl0.vm.memory.attributes.at(FREE)) == 7
        assert sorted(partition.vtls) == [0]
        if len(boots) == 3:
            guest.note(guest.rig.read(FREE, 8))
            yield from guest.end()
        guest.rig.write(FREE + PAGE, b"\1")
        yield from guest.enable(1)
        yield from guest.vtl_call()
        assert int(partition.vtl0.vm.memory.attributes.at(FREE)) == 0
        yield from RESETS[how](guest)
        yield from spin()

    scripted = ScriptedMachine(tmp_path, vtl0, vtl1, host=host, cpus=cpus)
    return scripted, scripted.run(LONG_NS)


@pytest.mark.tlfs("vsm.reset", "protection.zero-on-reset")
@pytest.mark.parametrize("from_vtl", [0, 1])
@pytest.mark.parametrize("how", RESETS)
def test_a_reset_leaves_vtl0_only_and_boots_again(tmp_path: Path, how: str, from_vtl: int) -> None:
    scripted, result = reset_and_boot_again(tmp_path, how, from_vtl=from_vtl)
    # Twice round: what the first reset left does not disturb the second. The secret is gone.
    assert scripted.log == ["boot"] * 3 + [0]
    assert (result.outcome, result.status) == (Outcome.POWER_OFF, 0)
    # Vcpus that are gone are counted still.
    assert result.vtl_switches == (4 if from_vtl == 0 else 2)
    assert result.user_exits["HYPERV"] > 10


@pytest.mark.tlfs("protection.zero-on-reset")
def test_vtl1_may_ask_that_memory_survives_a_reset(tmp_path: Path) -> None:
    scripted, _ = reset_and_boot_again(tmp_path, "0xcf9", config=0x1F)
    assert scripted.log[-1] == SECRET


@pytest.mark.parametrize("seed", range(8))
def test_a_reset_of_several_processors_under_any_schedule(tmp_path: Path, seed: int) -> None:
    scripted, result = reset_and_boot_again(tmp_path, "0xcf9", host=Simulator(seed=seed, instrument=True), cpus=3)
    assert scripted.log == ["boot"] * 3 + [0]
    assert result.outcome is Outcome.POWER_OFF


@pytest.mark.parametrize("attempt", range(5))
def test_a_reset_on_threads(tmp_path: Path, attempt: int) -> None:
    with ThreadHost() as host:
        scripted, result = reset_and_boot_again(tmp_path, "0xcf9", host=host, cpus=3)
    assert scripted.log == ["boot"] * 3 + [0]
    assert result.outcome is Outcome.POWER_OFF


# --- suspend ----------------------------------------------------------------------------------------------------------


def suspend_to_memory(guest: Guest, *, alarm: bool = True) -> Script:
    """S3 with the real-time clock's alarm as the wake event, one second from now."""
    if alarm:
        # Alarm every second, its interrupt enabled; RTC_EN in the PM1 enable register.
        for register in (1, 3, 5):
            yield ops.Out(0x70, 1, register)
            yield ops.Out(0x71, 1, 0xC0)
        yield ops.Out(0x70, 1, 0xB)
        yield ops.Out(0x71, 1, 0x22)
        yield ops.Out(0x602, 2, 1 << 10)
    yield ops.Out(PM1_CONTROL_PORT, 2, SLP_EN | 1 << SLP_TYP_SHIFT)
    yield from spin()


def test_suspend_and_wake(tmp_path: Path) -> None:
    def vtl0(guest: Guest) -> Script:
        guest.rig.write(FREE, SECRET.to_bytes(8, "little"))
        gpa = scripted.machine.pc.tables.facs_gpa
        guest.rig.write(gpa + 12, WAKING_VECTOR.to_bytes(4, "little"))
        yield from suspend_to_memory(guest)

    def waking(guest: Guest) -> Script:
        guest.note("awake")
        guest.note(guest.rig.read(FREE, 8))
        yield from guest.end()

    scripted = ScriptedMachine(tmp_path, vtl0, waking=waking)
    result = scripted.run(LONG_NS)
    assert scripted.log == ["awake", SECRET]
    assert result.outcome is Outcome.POWER_OFF
    # The machine slept; nothing ran meanwhile.
    assert result.instructions is not None
    assert result.virtual_ns > 100 * 10 * result.instructions


def test_a_guest_that_cannot_be_woken_ends_the_run(tmp_path: Path) -> None:
    """It has left no waking vector."""
    result = ScriptedMachine(tmp_path, suspend_to_memory).run(LONG_NS)
    assert result.outcome is Outcome.INTERNAL_ERROR
    assert "waking vector 0x0" in result.message


def test_suspend_with_vtl1_is_refused(tmp_path: Path) -> None:
    def vtl0(guest: Guest) -> Script:
        yield from guest.enable_partition_vtl(1)
        yield from suspend_to_memory(guest)

    result = ScriptedMachine(tmp_path, vtl0).run(LONG_NS)
    assert result.outcome is Outcome.INTERNAL_ERROR
    assert "suspend" in result.message


def test_a_vtl_enabled_while_the_others_park_is_no_suspend(tmp_path: Path) -> None:
    """What another processor does between the request and its own parking counts."""

    def vtl0(guest: Guest) -> Script:
        yield from suspend_to_memory(guest)

    scripted = ScriptedMachine(tmp_path, vtl0)
    machine = scripted.machine
    request = machine._request_action

    def request_late(action: Callable[[], None]) -> None:
        request(lambda: enable(machine))
        request(action)

    machine._request_action = request_late  # type: ignore[method-assign]
    result = scripted.run(LONG_NS)
    assert result.outcome is Outcome.INTERNAL_ERROR
    assert "suspend" in result.message


def enable(machine: Machine) -> None:
    with machine.partition.lock:
        machine.partition.enable_vtl(1)


def test_power_off_by_acpi(tmp_path: Path) -> None:
    scripted = ScriptedMachine(tmp_path, lambda guest: _out(PM1_CONTROL_PORT, SLP_EN, 2))
    result = scripted.run(LONG_NS)
    assert (result.outcome, result.status) == (Outcome.POWER_OFF, 0)
