"""TLB locks: who takes, holds and loses them, and whom they hold up."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import pytest

from tests.unit.vmm.vsm.designs import tlb_flush_inhibit as tlb_flush_inhibit
from tests.unit.vmm.vsm.translate_rig import INHIBIT, READ, ask
from tests.unit.vmm.vsm.vsm_rig import Body, Guest, Script, VsmRig, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.engine.scripted.ops import Op
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.x86.apic import DeliveryMode

pytestmark = pytest.mark.usefixtures("tlb_flush_inhibit")

LOCKED = 2
CONFIG0, CONFIG1 = Name.HvRegisterVsmVpSecureConfigVtl0, Name.HvRegisterVsmVpSecureConfigVtl1
WAIT = Name.HvRegisterVsmVpWaitForTlbLock
USE_VTL = 1 << 4
VECTOR = 0x60


def wait_for(guest: Guest, what: Any) -> Script:
    while what not in guest.rig.log:
        yield ops.Pause()


def flush(guest: Guest, mask: int, *, named: int = 0) -> Generator[Op, int, int]:
    """`named`: a bit per VTL, none for the caller's own."""
    flags = USE_VTL | named << 8 if named else 0
    return (yield from guest.call(Call.HvCallFlushVirtualAddressSpace, struct.pack("<QQQ", 0, flags, mask)))


def inhibited(rig: Any, vp: int, vtl: int = 0) -> bool:
    result: bool = rig.partition.vps[vp].vcpus[vtl].hv.tlb_flush_inhibit.load()
    return result


def two_processors(holder: Body, flusher: Body, *, flusher_vtl: int = 0) -> VsmRig:
    """`holder` runs in VTL 1 of VP 0; `flusher` in the named VTL of VP 1, once VTL 1 is there."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
            guest.note("back")
            while True:
                yield ops.Pause()
        yield from wait_for(guest, "enabled")
        if flusher_vtl:
            yield from guest.vtl_call()
        yield from flusher(guest)

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            guest.note("enabled")
            yield from holder(guest)
            yield from guest.vtl_return()
        elif flusher_vtl:
            yield from flusher(guest)
        else:
            raise AssertionError("not to be entered")

    return run_guests({(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}, cpus=2)


def take_interrupts(guest: Guest) -> Script:
    """Take interrupts, and give the processor back after each with the registers as they were."""
    yield from guest.enable_apic()
    yield ops.Sti()
    guest.note("waiting")
    while True:
        vcpu = guest.rig.partition.vps[guest.vp].vcpus[guest.vtl]
        vcpu.hv.assist.write(16, guest.regs.rax.to_bytes(8, "little") + guest.regs.rcx.to_bytes(8, "little"))
        yield from guest.vtl_return(0)


# --- taking and losing ------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("tlb.translate", "tlb.secure-config", "tlb.release")
def test_a_lock_is_taken_read_and_released() -> None:
    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        assert not inhibited(guest.rig, 0)
        yield from guest.vtl_call()
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        for take in ("register", "translation"):
            assert (yield from guest.get(CONFIG0)) == (HvStatus.SUCCESS, 0)
            if take == "register":
                assert (yield from guest.set(CONFIG0, LOCKED)) == HvStatus.SUCCESS
            else:
                assert (yield from ask(guest, READ | INHIBIT)).status == HvStatus.SUCCESS
            assert inhibited(guest.rig, 0)
            assert (yield from guest.get(CONFIG0)) == (HvStatus.SUCCESS, LOCKED)
            assert (yield from guest.set(CONFIG0, 0)) == HvStatus.SUCCESS
            assert not inhibited(guest.rig, 0)
            yield from ask(guest, READ | INHIBIT)
            assert inhibited(guest.rig, 0)
            yield from guest.vtl_return()
            assert (yield from guest.get(CONFIG0)) == (HvStatus.SUCCESS, 0)
            yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})


@pytest.mark.tlfs("tlb.secure-config")
def test_statuses_of_the_registers() -> None:
    def vtl0(guest: Guest) -> Script:
        assert (yield from guest.get(CONFIG0)) == (HvStatus.ACCESS_DENIED, 0)
        assert (yield from guest.set(CONFIG0, LOCKED)) == HvStatus.ACCESS_DENIED
        yield from guest.enable(2)
        yield from guest.vtl_call()

    def vtl2(guest: Guest) -> Script:
        for value in (1, 3, 4, 1 << 63, 1 << 64):
            assert (yield from guest.set(CONFIG0, value)) == HvStatus.INVALID_REGISTER_VALUE
        # VTL 1 is not there, and VTL 2 has no register for itself.
        assert (yield from guest.set(CONFIG1, LOCKED)) == HvStatus.INVALID_VTL_STATE
        assert (yield from guest.get(CONFIG1))[0] == HvStatus.INVALID_VTL_STATE
        assert (yield from guest.set(CONFIG0 + 2, LOCKED)) == HvStatus.ACCESS_DENIED
        assert (yield from guest.set(CONFIG0 + 14, LOCKED)) == HvStatus.ACCESS_DENIED
        assert (yield from guest.set(CONFIG0 + 15, LOCKED)) == HvStatus.INVALID_PARAMETER
        assert (yield from guest.set(WAIT, 2)) == HvStatus.INVALID_REGISTER_VALUE
        assert (yield from guest.set(WAIT, 1)) == HvStatus.SUCCESS
        assert (yield from guest.get(WAIT)) == (HvStatus.SUCCESS, 0)
        yield from guest.end()

    run_guests({(0, 0): vtl0, (0, 2): vtl2}, vtls=3)


@pytest.mark.tlfs("tlb.release")
def test_each_holder_has_its_own_lock_and_loses_all_by_returning() -> None:
    seen: list[tuple[bool, bool]] = []

    def look(guest: Guest) -> None:
        seen.append((inhibited(guest.rig, 0, 0), inhibited(guest.rig, 0, 1)))

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        look(guest)
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.set(CONFIG0, LOCKED)
        yield from guest.vtl_call()
        # VTL 2 has returned: its locks are gone, this VTL's is not.
        look(guest)
        assert (yield from guest.get(CONFIG0)) == (HvStatus.SUCCESS, LOCKED)
        yield from guest.vtl_return()

    def vtl2(guest: Guest) -> Script:
        look(guest)
        yield from guest.set(CONFIG0, LOCKED)
        yield from guest.set(CONFIG1, LOCKED)
        look(guest)
        # Of VTL 1's instance of the register, which this VTL may write.
        assert (yield from guest.set(CONFIG0, 0, vtl=input_vtl(1))) == HvStatus.SUCCESS
        look(guest)
        assert (yield from guest.set(CONFIG0, LOCKED, vtl=input_vtl(1))) == HvStatus.SUCCESS
        yield from guest.vtl_return()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
    assert seen == [(True, False), (True, True), (True, True), (True, False), (False, False)]


# --- holding up -------------------------------------------------------------------------------------------------------


@pytest.mark.tlfs("tlb.flusher", "tlb.release", "hypercalls.flush-vtl")
@pytest.mark.parametrize("by", ["clear", "return"])
@pytest.mark.parametrize("take", ["register", "translation"])
@pytest.mark.parametrize("flusher_vtl", [0, 1])
def test_a_flush_of_a_locked_tlb_waits_for_the_release(take: str, by: str, flusher_vtl: int) -> None:
    """Of its own VTL's translations by VTL 0; of VTL 0's by VTL 1, which user space decides."""

    def holder(guest: Guest) -> Script:
        if take == "register":
            yield from guest.set(CONFIG0, LOCKED)
        else:
            yield from ask(guest, READ | INHIBIT)
        guest.note("locked")
        yield from wait_for(guest, "flushing")
        yield ops.Compute(200)
        guest.note("releasing")
        if by == "clear":
            yield from guest.set(CONFIG0, 0)
            while True:
                yield ops.Pause()

    def flusher(guest: Guest) -> Script:
        yield from wait_for(guest, "locked")
        guest.note("flushing")
        # Its own processor alone is not locked.
        assert (yield from flush(guest, 0b10, named=flusher_vtl)) == HvStatus.SUCCESS
        assert "releasing" not in guest.rig.log
        assert (yield from flush(guest, 0b01, named=flusher_vtl)) == HvStatus.SUCCESS
        assert "releasing" in guest.rig.log
        yield from guest.end()

    two_processors(holder, flusher, flusher_vtl=flusher_vtl)


@pytest.mark.tlfs("tlb.flusher")
def test_a_vtl_is_not_held_up_by_its_own_lock_nor_by_a_lower_one() -> None:
    def rung(guest: Guest) -> Script:
        yield from guest.enable(guest.vtl + 1)
        if guest.vtl == 1:
            yield from guest.set(CONFIG0, LOCKED)
            assert (yield from flush(guest, 1, named=0b11)) == HvStatus.SUCCESS
        yield from guest.vtl_call()
        assert guest.vtl == 1
        # VTL 2 locked VTL 1 and returned: nothing is left of that.
        assert (yield from flush(guest, 1)) == HvStatus.SUCCESS
        yield from guest.end()

    def vtl2(guest: Guest) -> Script:
        assert inhibited(guest.rig, 0)
        assert (yield from flush(guest, 1, named=0b01)) == HvStatus.SUCCESS
        yield from guest.set(CONFIG1, LOCKED)
        assert (yield from flush(guest, 1, named=0b11)) == HvStatus.SUCCESS
        yield from guest.vtl_return()

    run_guests({(0, 0): rung, (0, 1): rung, (0, 2): vtl2}, vtls=3)


@pytest.mark.parametrize("flusher_vtl", [0, 1])
@pytest.mark.tlfs("tlb.flusher")
def test_a_higher_vtl_gets_the_processor_of_a_suspended_one(flusher_vtl: int) -> None:
    """VP 1's VTL below the top waits for a lock; an interrupt for the top VTL switches, and the wait goes on after."""
    top = flusher_vtl + 1

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
        yield from wait_for(guest, "ready")
        yield from guest.vtl_call()
        if flusher_vtl == 0:
            yield from flusher(guest)

    def flusher(guest: Guest) -> Script:
        guest.note("flushing")
        assert (yield from flush(guest, 0b01, named=flusher_vtl)) == HvStatus.SUCCESS
        assert guest.rig.log[-1] == "releasing"
        yield from guest.end()

    def upper(guest: Guest) -> Script:
        if guest.vp == 1:
            yield from (take_interrupts(guest) if guest.vtl == top else middle(guest))
        elif guest.vtl < top:
            yield from guest.enable(2)
            yield from guest.vtl_call()
            yield from holder(guest)
        else:
            yield from (holder(guest) if top == 1 else enabler(guest))

    def enabler(guest: Guest) -> Script:
        yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.enable_vp_vtl(2, vp=1)
        yield from guest.vtl_return()

    def middle(guest: Guest) -> Script:
        yield from guest.vtl_call()
        yield from flusher(guest)

    def holder(guest: Guest) -> Script:
        if top == 1:
            yield from guest.enable_vp_vtl(1, vp=1)
        yield from guest.set(CONFIG0, LOCKED)
        guest.note("ready")
        yield from wait_for(guest, "flushing")
        yield ops.Compute(100)
        target = guest.rig.partition.vps[1].vcpus[top]
        for number in range(3):
            target.apic.accept_irq(DeliveryMode.FIXED, VECTOR + number, 1, False)
            while len(guest.rig.taken) <= number:
                yield ops.Pause()
        assert guest.rig.log[-1] == "flushing"
        guest.note("releasing")
        yield from guest.vtl_return()

    guests: dict[tuple[int, int], Body] = {
        (vp, vtl): upper if vtl else vtl0 for vp in range(2) for vtl in range(top + 1)
    }
    rig = run_guests(guests, cpus=2, vtls=top + 1)
    assert [(each.vp, each.vtl) for each in rig.taken] == [(1, top)] * 3


@pytest.mark.tlfs("tlb.wait")
def test_waiting_for_locks_that_others_hold_now() -> None:
    """VTL 1 of VP 1 makes VTL 0 there wait for VP 0's lock; its own lock does not count, it ends when VTL 1 returns."""

    def holder(guest: Guest) -> Script:
        yield from guest.set(CONFIG0, LOCKED)
        guest.note("locked")
        yield from wait_for(guest, "returning")
        yield ops.Compute(200)
        guest.note("releasing")

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable(1)
            yield from guest.vtl_call()
            while True:
                yield ops.Pause()
        yield from wait_for(guest, "locked")
        yield from guest.vtl_call()
        assert guest.rig.log[-1] == "releasing"
        assert (yield from guest.get(WAIT)) == (HvStatus.SUCCESS, 0)
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        if guest.vp == 0:
            yield from guest.enable_vp_vtl(1, vp=1)
            yield from holder(guest)
            yield from guest.vtl_return()
        yield from guest.set(CONFIG0, LOCKED)
        assert (yield from guest.set(WAIT, 1, vtl=input_vtl(0))) == HvStatus.SUCCESS
        assert (yield from guest.get(WAIT, vtl=input_vtl(0))) == (HvStatus.SUCCESS, 1)
        assert (yield from guest.get(WAIT)) == (HvStatus.SUCCESS, 0)
        guest.note("returning")
        yield from guest.vtl_return()

    run_guests({(vp, vtl): vtl1 if vtl else vtl0 for vp in range(2) for vtl in range(2)}, cpus=2)


def test_a_reset_ends_locks_and_waits() -> None:
    rig = VsmRig({}, cpus=2)
    partition = rig.partition
    with partition.lock:
        partition.enable_vtl(1)
        vcpu = partition.create_vcpu(0, 1)
        partition.vps[0].add_vcpu(vcpu, 1)
    locks = partition.tlb_locks
    locks.acquire(partition.vps[0], 1, 0)
    locks.wait_for_locks(partition.vps[1], 0)
    assert partition.vps[1].tlb_waits.test(0)
    assert not locks.flush(partition.vps[1], 0, (0,), 0b01)
    partition.reset()
    assert not inhibited(rig, 0)
    assert not partition.vps[1].tlb_waits.test(0)
    assert not locks.held(partition.vps[0], 1, 0)
    assert locks.flush(partition.vps[1], 0, (0,), 0b01)
