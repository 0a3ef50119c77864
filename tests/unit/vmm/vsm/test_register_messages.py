"""Intercepts by HvX64RegisterCrInterceptControl in real machine code: the messages byte by byte, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.vmm.vsm.instruction_rig import (
    END_PORT,
    WRITE,
    Rig,
    check_header,
    number,
    program,
    the_message,
)
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.vsm import HvCrInterceptControl as Control
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.x86 import msr
from vtlkit.x86.registers import CR4_OSXSAVE

DATA = 0x1C0000


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.guest.long_mode()
    yield rig
    rig.factory.close()


CONTROLLED = [
    (Control.IA32MiscEnableRead, msr.MSR_IA32_MISC_ENABLE, False),
    (Control.IA32MiscEnableWrite, msr.MSR_IA32_MISC_ENABLE, True),
    (Control.MsrLstarRead, msr.MSR_LSTAR, False),
    (Control.MsrLstarWrite, msr.MSR_LSTAR, True),
    (Control.MsrStarRead, msr.MSR_STAR, False),
    (Control.MsrStarWrite, msr.MSR_STAR, True),
    (Control.MsrCstarRead, msr.MSR_CSTAR, False),
    (Control.MsrCstarWrite, msr.MSR_CSTAR, True),
    (Control.ApicBaseMsrRead, msr.MSR_IA32_APICBASE, False),
    (Control.ApicBaseMsrWrite, msr.MSR_IA32_APICBASE, True),
    (Control.MsrEferRead, msr.MSR_EFER, False),
    (Control.MsrEferWrite, msr.MSR_EFER, True),
    (Control.MsrSysenterCsWrite, msr.MSR_IA32_SYSENTER_CS, True),
    (Control.MsrSysenterEipWrite, msr.MSR_IA32_SYSENTER_EIP, True),
    (Control.MsrSysenterEspWrite, msr.MSR_IA32_SYSENTER_ESP, True),
    (Control.MsrSfmaskWrite, msr.MSR_SYSCALL_MASK, True),
    (Control.MsrTscAuxWrite, msr.MSR_TSC_AUX, True),
    (Control.MsrSgxLaunchControlWrite, msr.MSR_IA32_SGXLEPUBKEYHASH0 + 3, True),
]


@pytest.mark.parametrize(("control", "index", "write"), CONTROLLED, ids=[entry[0].name for entry in CONTROLLED])
@pytest.mark.tlfs("intercepts.registers")
def test_msrs_of_the_control_register(rig: Rig, control: Control, index: int, write: bool) -> None:
    """One bit, one direction of one MSR; the other direction is not told."""
    rig.set(Name.HvX64RegisterCrInterceptIa32MiscEnableMask, 0xFFFFFFFFFFFFFFFF, vtl=1)
    rig.set(Name.HvX64RegisterCrInterceptControl, control, vtl=1)

    def lift(rig: Rig) -> None:
        rig.skip(2)

    rig.react = [lift]

    def body(code: Assembler) -> None:
        code.mov("ecx", index)
        exists = index != msr.MSR_IA32_SGXLEPUBKEYHASH0 + 3
        if exists and write:
            code.rdmsr()
            # Written as it is, but for what a mask may look at.
            code.xor("eax", 1)
        elif exists:
            code.mov("esi", "eax")
        code.label("target")
        code.wrmsr() if write else code.rdmsr()

    code = program(rig, body)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeMsrIntercept, 0x40)
    check_header(rig, payload, code, int(write))
    assert number(payload, 0x28, 4) == index


@pytest.mark.parametrize(("mask", "told"), [(0, False), (1, True), (2, False), (1 << 22, False)])
@pytest.mark.tlfs("intercepts.registers")
def test_the_mask_of_misc_enable(rig: Rig, mask: int, told: bool) -> None:
    """Only a bit of the mask that changes counts."""
    rig.set(Name.HvX64RegisterCrInterceptIa32MiscEnableMask, mask, vtl=1)
    rig.set(Name.HvX64RegisterCrInterceptControl, Control.IA32MiscEnableWrite, vtl=1)
    rig.react = [lambda rig: rig.skip(2)]
    code = rig.guest.assembler()
    code.mov("ecx", msr.MSR_IA32_MISC_ENABLE)
    code.rdmsr()
    code.xor("eax", 1)
    code.wrmsr()
    code.rdmsr()
    code.mov("ebx", "eax")
    code.out(END_PORT, "al")
    before = rig.vcpu.get_msr(msr.MSR_IA32_MISC_ENABLE)
    assert before is not None
    rig.run(code)
    assert len(rig.messages) == told
    assert rig.vcpu.get_regs().rbx == before ^ (not told)


# --- registers ------------------------------------------------------------------------------------------------------


def _cr0(code: Assembler) -> None:
    code.mov("rbx", "cr0")
    code.xor("rbx", 1 << 16)
    code.label("target")
    code.mov("cr0", "rbx")


def _cr4(code: Assembler) -> None:
    code.mov("rbx", "cr4")
    code.xor("rbx", 1 << 7)
    code.label("target")
    code.mov("cr4", "rbx")


def _clts(code: Assembler) -> None:
    code.label("target")
    code.clts()


def _lmsw(code: Assembler) -> None:
    code.mov("ebx", 3)
    code.label("target")
    code.lmsw("bx")


def _xsetbv(code: Assembler) -> None:
    code.mov("eax", 3)
    code.mov("ecx", 0)
    code.mov("edx", 0)
    code.label("target")
    code.xsetbv()


REGISTER_WRITES: list[tuple[Any, Control, Name, Callable[[int, int], int]]] = [
    (_cr0, Control.Cr0Write, Name.HvX64RegisterCr0, lambda cr0, cr4: cr0 ^ 1 << 16),
    (_cr4, Control.Cr4Write, Name.HvX64RegisterCr4, lambda cr0, cr4: cr4 ^ 1 << 7),
    (_clts, Control.Cr0Write, Name.HvX64RegisterCr0, lambda cr0, cr4: cr0 & ~8),
    (_lmsw, Control.Cr0Write, Name.HvX64RegisterCr0, lambda cr0, cr4: cr0 & ~0xE | 3),
    (_xsetbv, Control.XCr0Write, Name.HvX64RegisterXfem, lambda cr0, cr4: 3),
]


@pytest.mark.parametrize(("emit", "control", "name", "value"), REGISTER_WRITES)
@pytest.mark.tlfs("intercepts.registers")
def test_a_control_register(
    rig: Rig, emit: Any, control: Control, name: Name, value: Callable[[int, int], int]
) -> None:
    sregs = rig.vcpu.get_sregs()
    sregs.cr4 |= CR4_OSXSAVE
    sregs.cr0 |= 8
    rig.vcpu.set_sregs(sregs)
    rig.set(Name.HvX64RegisterCrInterceptCr0Mask, 1 << 16 | 0xE, vtl=1)
    rig.set(Name.HvX64RegisterCrInterceptCr4Mask, 1 << 7, vtl=1)
    rig.set(Name.HvX64RegisterCrInterceptControl, control, vtl=1)
    rig.react = [lambda rig: rig.set(Name.HvX64RegisterCrInterceptControl, 0, vtl=1)]
    code = program(rig, emit)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeRegisterIntercept, 0x40)
    check_header(rig, payload, code, WRITE)
    wanted = value(sregs.cr0, sregs.cr4)
    assert payload[0x28:0x2C] == bytes(4)
    assert number(payload, 0x2C, 4) == name
    assert number(payload, 0x30, 16) == wanted
    # Lifted: the write has happened.
    engine = rig.vcpu.engine
    got = {Name.HvX64RegisterCr0: engine.cr0, Name.HvX64RegisterCr4: engine.cr4, Name.HvX64RegisterXfem: engine.xcr0}
    assert got[name] == wanted


@pytest.mark.parametrize(("mask", "told"), [(0, False), (1 << 16, True), (1 << 18, False)])
@pytest.mark.tlfs("intercepts.registers")
def test_the_mask_of_cr0(rig: Rig, mask: int, told: bool) -> None:
    rig.set(Name.HvX64RegisterCrInterceptCr0Mask, mask, vtl=1)
    rig.set(Name.HvX64RegisterCrInterceptControl, Control.Cr0Write, vtl=1)
    rig.react = [lambda rig: rig.skip(3)]
    before = rig.vcpu.engine.cr0
    rig.run(program(rig, _cr0))
    assert len(rig.messages) == told
    assert rig.vcpu.engine.cr0 == before ^ (not told) << 16


@pytest.mark.parametrize(
    ("emit", "control", "name", "selector"),
    [
        (lambda code: code.lgdt(Mem("rbx", 0x10)), Control.GdtrWrite, Name.HvX64RegisterGdtr, None),
        (lambda code: code.lidt(Mem("rbx", 0x10)), Control.IdtrWrite, Name.HvX64RegisterIdtr, None),
        (lambda code: code.lldt("si"), Control.LdtrWrite, Name.HvX64RegisterLdtr, 0),
        (lambda code: code.lldt(Mem("rbx", 0x10, size=2)), Control.LdtrWrite, Name.HvX64RegisterLdtr, None),
        (lambda code: code.ltr("si"), Control.TrWrite, Name.HvX64RegisterTr, 0),
    ],
)
@pytest.mark.tlfs("intercepts.registers")
def test_a_descriptor_table(rig: Rig, emit: Any, control: Control, name: Name, selector: int | None) -> None:
    """With the operand in memory the message says where; the table is as before when VTL1 has skipped it."""
    before = rig.vcpu.get_sregs()
    rig.set(Name.HvX64RegisterCrInterceptControl, control, vtl=1)

    def body(code: Assembler) -> None:
        code.mov("rbx", DATA)
        code.mov("esi", 0)
        code.label("target")
        emit(code)

    code = program(rig, body)
    rig.react = [lambda rig: rig.skip(code.at("next") - code.at("target"))]
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeRegisterIntercept, 0x40)
    check_header(rig, payload, code, WRITE)
    assert number(payload, 0x28, 1) == (selector is None)
    assert payload[0x29:0x2C] == bytes(3)
    assert number(payload, 0x2C, 4) == name
    assert number(payload, 0x30, 16) == (DATA + 0x10 if selector is None else selector)
    after = rig.vcpu.get_sregs()
    assert (after.gdt, after.idt, after.ldt, after.tr) == (before.gdt, before.idt, before.ldt, before.tr)
