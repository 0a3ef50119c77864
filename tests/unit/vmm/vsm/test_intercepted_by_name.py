"""Registers by name against intercepts of a higher VTL: a lower one does not get around them by a hypercall."""

from __future__ import annotations

import pytest

from tests.unit.vmm.vsm.intercept_guests import R, W, install, must
from tests.unit.vmm.vsm.vsm_rig import CR0, CR4, EFER, Guest, Script, input_vtl, run_guests
from vtlkit.engine.scripted import ops
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HvCrInterceptControl as Control

WP, SCE = 1 << 16, 1
TABLE = 0x1000 << 64 | 0x7F << 48
CASES = [
    (Name.HvX64RegisterCr0, CR0 ^ WP, Control.Cr0Write),
    (Name.HvX64RegisterIntermediateCr0, CR0 ^ WP, Control.Cr0Write),
    (Name.HvX64RegisterCr4, CR4 ^ 1 << 9, Control.Cr4Write),
    (Name.HvX64RegisterXfem, 1, Control.XCr0Write),
    (Name.HvX64RegisterGdtr, TABLE, Control.GdtrWrite),
    (Name.HvX64RegisterIdtr, TABLE, Control.IdtrWrite),
    (Name.HvX64RegisterEfer, EFER | SCE, Control.MsrEferWrite),
    (Name.HvX64RegisterLstar, 0x1000, Control.MsrLstarWrite),
    (Name.HvX64RegisterSysenterEip, 0x1000, Control.MsrSysenterEipWrite),
]


@pytest.mark.parametrize("vp", [0, 1])
@pytest.mark.parametrize(("name", "value", "control"), CASES, ids=[case[0].name for case in CASES])
def test_a_write_that_is_intercepted_is_refused(name: Name, value: int, control: Control, vp: int) -> None:
    """Of VTL 0's own register and of another processor's, whose VTL 1 intercepts it; VTL 1 itself may."""

    def vtl0(guest: Guest) -> Script:
        if guest.vp == 1:
            while True:
                yield ops.Pause()
        yield from guest.enable(1)
        yield from guest.vtl_call()
        before = yield from guest.get(name, vp=vp)
        assert (yield from guest.set(name, value, vp=vp)) == HvStatus.ACCESS_DENIED
        assert (yield from guest.get(name, vp=vp)) == before
        yield from guest.vtl_call()
        assert (yield from guest.set(name, value, vp=vp)) == HvStatus.SUCCESS
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable_vp_vtl(1, vp=1)
        for mask in (Name.HvX64RegisterCrInterceptCr0Mask, Name.HvX64RegisterCrInterceptCr4Mask):
            yield from guest.set(mask, (1 << 64) - 1, vp=vp)
        assert (yield from guest.set(Name.HvX64RegisterCrInterceptControl, control, vp=vp)) == HvStatus.SUCCESS
        yield from guest.vtl_return()
        old = (yield from guest.get(name, vtl=input_vtl(0), vp=vp))[1]
        assert (yield from guest.set(name, value, vtl=input_vtl(0), vp=vp)) == HvStatus.SUCCESS
        assert (yield from guest.set(name, old, vtl=input_vtl(0), vp=vp)) == HvStatus.SUCCESS
        yield from guest.set(Name.HvX64RegisterCrInterceptControl, 0, vp=vp)
        yield from guest.vtl_return()

    run_guests({(0, 0): vtl0, (1, 0): vtl0, (0, 1): vtl1}, cpus=2)


def test_unmasked_bits_and_reads() -> None:
    """A mask of one bit leaves the others alone; an MSR's reads are refused where they are intercepted."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()
        assert (yield from guest.set(Name.HvX64RegisterCr0, CR0 ^ 1 << 5)) == HvStatus.SUCCESS
        assert (yield from guest.set(Name.HvX64RegisterCr0, CR0 ^ WP)) == HvStatus.ACCESS_DENIED
        assert (yield from guest.get(Name.HvX64RegisterStar))[0] == HvStatus.ACCESS_DENIED
        assert (yield from guest.set(Name.HvX64RegisterStar, 0)) == HvStatus.SUCCESS
        assert (yield from guest.get(Name.HvX64RegisterLstar))[0] == HvStatus.SUCCESS
        yield from guest.end()

    def vtl1(guest: Guest) -> Script:
        yield from guest.set(Name.HvX64RegisterCrInterceptCr0Mask, WP)
        yield from guest.set(Name.HvX64RegisterCrInterceptControl, Control.Cr0Write)
        yield from must(install(guest, Type.HvInterceptTypeX64Msr, 0xC0000081, R))
        yield from guest.vtl_return()

    run_guests({(0, 0): vtl0, (0, 1): vtl1})


def test_a_middle_vtl_is_refused_too() -> None:
    """VTL 2 intercepts; VTL 1 may not write VTL 0's register, and VTL 1's intercept holds VTL 0 alone."""

    def vtl0(guest: Guest) -> Script:
        yield from guest.enable(1)
        yield from guest.vtl_call()

    def vtl1(guest: Guest) -> Script:
        yield from guest.enable(2)
        yield from guest.vtl_call()
        yield from guest.set(Name.HvX64RegisterCrInterceptControl, Control.MsrCstarWrite)
        for vtl in (0, 1):
            assert (yield from guest.set(Name.HvX64RegisterLstar, 7, vtl=input_vtl(vtl))) == HvStatus.ACCESS_DENIED
            assert (yield from guest.set(Name.HvX64RegisterCstar, 7, vtl=input_vtl(vtl))) == HvStatus.SUCCESS
        yield from guest.end()

    def vtl2(guest: Guest) -> Script:
        yield from must(install(guest, Type.HvInterceptTypeX64Msr, 0xC0000082, W))
        yield from guest.vtl_return()

    run_guests({(0, 0): vtl0, (0, 1): vtl1, (0, 2): vtl2}, vtls=3)
