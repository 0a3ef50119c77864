"""Intercepts of exceptions and of the local APIC in real machine code: the messages byte by byte, and what follows."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.vmm.vsm.instruction_rig import (
    END_PORT,
    EXECUTE,
    GPRS,
    STATE_64,
    WRITE,
    Rig,
    check_header,
    number,
    program,
    remove,
    the_message,
)
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.testing import guest_builder as layout
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import RFLAGS_TF

NOWHERE = 0x7F0000001000


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.guest.long_mode()
    yield rig
    rig.factory.close()


# --- exceptions -----------------------------------------------------------------------------------------------------


def _exception(
    rig: Rig, vector: int, body: Callable[[Assembler], None], react: Callable[[Rig], None] | None = None
) -> tuple[bytes, Assembler]:
    rig.install(Type.HvInterceptTypeException, vector)
    rig.guest.write(rig.guest.handler(vector), bytes((0xE6, END_PORT)))
    rig.react = [react or remove(Type.HvInterceptTypeException, vector)]
    code = program(rig, body)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeExceptionIntercept, 0xF0)
    return payload, code


def check_exception(
    rig: Rig, payload: bytes, code: Assembler, vector: int, error_code: int | None, parameter: int, info: int = 0
) -> None:
    info |= error_code is not None
    assert struct.unpack_from("<HBBIQQ", payload, 0x28) == (vector, info, 16, error_code or 0, parameter, 0)
    at = rig.states[0]["rip"]
    assert payload[0x40:0x50] == bytes(rig.ram.view[at : at + 16])
    for offset in (0x50, 0x60):
        assert (number(payload, offset + 12, 2), number(payload, offset + 14, 2)) == (layout.KERNEL_DATA, 0xC093)
    assert struct.unpack_from("<16Q", payload, 0x70) == tuple(rig.states[0][name] for name in GPRS)


@pytest.mark.tlfs("intercepts.exception")
def test_undefined_instruction(rig: Rig) -> None:
    payload, code = _exception(rig, Vector.UD, lambda code: code.ud2())
    check_header(rig, payload, code, EXECUTE)
    check_exception(rig, payload, code, Vector.UD, None, 0)
    # Lifted, it is delivered.
    assert rig.guest.frame(5)[0] == code.at("target")


@pytest.mark.tlfs("intercepts.exception")
def test_page_fault(rig: Rig) -> None:
    """CR2 is written when the fault is delivered, and not before."""
    sregs = rig.vcpu.get_sregs()
    sregs.cr2 = 0x1234
    rig.vcpu.set_sregs(sregs)
    seen = []

    def react(rig: Rig) -> None:
        seen.append(rig.vcpu.get_sregs().cr2)
        rig.install(Type.HvInterceptTypeException, Vector.PF, 0)

    def body(code: Assembler) -> None:
        code.mov("rbx", NOWHERE)
        code.label("target")
        code.mov(Mem("rbx", 8), "rax")

    payload, code = _exception(rig, Vector.PF, body, react)
    check_header(rig, payload, code, EXECUTE)
    check_exception(rig, payload, code, Vector.PF, 2, NOWHERE + 8)
    assert seen == [0x1234]
    assert rig.vcpu.get_sregs().cr2 == NOWHERE + 8
    assert rig.guest.frame(6)[:2] == (2, code.at("target"))


@pytest.mark.tlfs("intercepts.exception", "intercepts.handling")
def test_an_injected_exception_is_not_intercepted(rig: Rig) -> None:
    """VTL1 answers #UD by #UD: that one is delivered."""
    payload, code = _exception(
        rig, Vector.UD, lambda code: code.ud2(), lambda rig: rig.set(Name.HvRegisterPendingEvent0, 1 | 6 << 16)
    )
    check_exception(rig, payload, code, Vector.UD, None, 0)
    assert rig.guest.frame(5)[0] == code.at("target")


@pytest.mark.parametrize(
    "body",
    [
        lambda code: (code.mov("ecx", 0x12345), code.label("target"), code.rdmsr()),
        lambda code: (code.mov("ecx", 0x12345), code.label("target"), code.wrmsr()),
        lambda code: (code.mov("ebx", 1 << 31), code.label("target"), code.mov("cr4", "rbx")),
        lambda code: (code.label("target"), code.mov("cr8", "rbx")),
    ],
    ids=["rdmsr", "wrmsr", "cr4", "cr8"],
)
@pytest.mark.tlfs("intercepts.exception")
def test_exceptions_that_the_hypervisor_raises(rig: Rig, body: Any) -> None:
    payload, code = _exception(rig, Vector.GP, body)
    check_header(rig, payload, code, EXECUTE)
    check_exception(rig, payload, code, Vector.GP, 0, 0)
    assert rig.guest.frame(6)[:2] == (0, code.at("target"))


@pytest.mark.tlfs("intercepts.exception")
def test_software_exception(rig: Rig) -> None:
    payload, code = _exception(rig, Vector.BP, lambda code: code.int3(), lambda rig: rig.skip(1))
    check_header(rig, payload, code, EXECUTE)
    check_exception(rig, payload, code, Vector.BP, None, 0, info=2)


@pytest.mark.parametrize("instruction", [b"\x90", b"\x0f\xa2"], ids=["nop", "cpuid"])
@pytest.mark.tlfs("intercepts.exception")
def test_single_step(rig: Rig, instruction: bytes) -> None:
    """A trap: RIP is behind the instruction, whoever executed it; the parameter says why."""
    rig.install(Type.HvInterceptTypeException, Vector.DB)

    def react(rig: Rig) -> None:
        rig.set(Name.HvX64RegisterRflags, rig.vcpu.get_regs().rflags & ~RFLAGS_TF)

    rig.react = [react]
    code = rig.guest.assembler()
    code.pushfq()
    code.or_(Mem("rsp", 0, size=8), RFLAGS_TF)
    code.popfq()
    code.raw(instruction)
    code.label("behind")
    code.out(END_PORT, "al")
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeExceptionIntercept, 0xF0)
    assert number(payload, 0x18, 8) == code.at("behind")
    assert number(payload, 0x28, 2) == Vector.DB
    assert number(payload, 0x30, 8) == 1 << 14


@pytest.mark.tlfs("intercepts.exception")
@pytest.mark.tlfs("intercepts.header")
def test_a_fault_of_an_exceptions_delivery(rig: Rig) -> None:
    """#UD's gate is not there: the #NP is told; when VTL1 has mended the gate, #UD is delivered."""
    rig.guest.gate(Vector.UD, rig.guest.handler(Vector.UD), present=False)
    rig.guest.write(rig.guest.handler(Vector.UD), bytes((0xE6, END_PORT)))
    rig.install(Type.HvInterceptTypeException, Vector.NP)
    rig.react = [lambda rig: rig.guest.gate(Vector.UD, rig.guest.handler(Vector.UD))]
    code = program(rig, lambda code: code.ud2())
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeExceptionIntercept, 0xF0)
    # An event waits to be delivered.
    check_header(rig, payload, code, EXECUTE, state=STATE_64 | 1 << 6)
    check_exception(rig, payload, code, Vector.NP, Vector.UD << 3 | 3, 0)
    assert rig.guest.frame(5)[0] == code.at("target")


# --- the local APIC -------------------------------------------------------------------------------------------------


def _x2apic(rig: Rig) -> None:
    for index, value in ((0x1B, 0xFEE00D00), (0x80F, 0x1FF)):
        assert rig.vcpu.set_guest_msr(index, value)


def _write_x2apic(code: Assembler, index: int, value: int) -> None:
    code.mov("ecx", index)
    code.mov("eax", value & 0xFFFFFFFF)
    code.mov("edx", value >> 32)
    code.wrmsr()


@pytest.mark.tlfs("intercepts.apic")
def test_a_write_of_the_local_apic(rig: Rig) -> None:
    """A trap: the register is written, RIP behind the instruction. The mask chooses registers."""
    _x2apic(rig)
    rig.install(Type.HvInterceptTypeX64ApicWrite, 1 << 2)
    rig.react = [remove(Type.HvInterceptTypeX64ApicWrite, 1 << 2)]
    code = rig.guest.assembler()
    _write_x2apic(code, 0x836, 0x10077)
    _write_x2apic(code, 0x80F, 0x1EE)
    code.label("behind")
    _write_x2apic(code, 0x80F, 0x1FF)
    code.out(END_PORT, "al")
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeX64ApicWriteIntercept, 0x38)
    assert (number(payload, 4, 1), number(payload, 5, 1)) == (0, WRITE)
    assert number(payload, 0x18, 8) == code.at("behind")
    assert struct.unpack_from("<IIQ", payload, 0x28) == (0xF0, 0, 0x1EE)


@pytest.mark.tlfs("intercepts.apic")
def test_a_write_to_the_apics_page(rig: Rig) -> None:
    """From inside the guest, without an exit: it is left before the next instruction."""
    assert rig.vcpu.set_guest_msr(0x1B, 0xFEE00900)
    rig.guest.map_page(0x1D0000, 0xFEE00000 | 3)
    rig.install(Type.HvInterceptTypeX64ApicWrite, 0x1F)
    rig.react = [remove(Type.HvInterceptTypeX64ApicWrite, 0x1F)]
    code = rig.guest.assembler()
    code.mov("ebx", 0x1D0000)
    code.mov(Mem("rbx", 0xD0, size=4), 0x3000000)
    code.label("behind")
    code.inc("esi")
    code.out(END_PORT, "al")
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeX64ApicWriteIntercept, 0x38)
    assert number(payload, 0x18, 8) == code.at("behind")
    assert struct.unpack_from("<IIQ", payload, 0x28) == (0xD0, 0, 0x3000000)


@pytest.mark.tlfs("intercepts.apic")
@pytest.mark.parametrize(("bit", "register"), list(enumerate((0x350, 0x360, 0xF0, 0xD0, 0xE0))))
def test_each_bit_of_the_mask_is_one_register(rig: Rig, bit: int, register: int) -> None:
    """LINT0, LINT1, SVR, LDR and DFR; the first of the five writes that is told is that of the bit."""
    assert rig.vcpu.set_guest_msr(0x1B, 0xFEE00900)
    rig.guest.map_page(0x1D0000, 0xFEE00000 | 3)
    rig.install(Type.HvInterceptTypeX64ApicWrite, 1 << bit)
    rig.react = [remove(Type.HvInterceptTypeX64ApicWrite, 1 << bit)]
    code = rig.guest.assembler()
    code.mov("ebx", 0x1D0000)
    values = {0xF0: 0x1EE, 0x350: 0x10041, 0x360: 0x10042, 0xD0: 0x3000000, 0xE0: 0xFFFFFFFF}
    for offset, value in values.items():
        code.mov("eax", value)
        code.mov(Mem("rbx", offset, size=4), "eax")
    code.out(END_PORT, "al")
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeX64ApicWriteIntercept, 0x38)
    assert struct.unpack_from("<IIQ", payload, 0x28) == (register, 0, values[register])


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.tlfs("intercepts.apic")
def test_an_eoi(rig: Rig, page: bool) -> None:
    """Told when an interrupt has been ended, and not if none was in service; the message has no header."""
    if page:
        assert rig.vcpu.set_guest_msr(0x1B, 0xFEE00900)
        rig.guest.map_page(0x1D0000, 0xFEE00000 | 3)
    else:
        _x2apic(rig)
    rig.install(Type.HvInterceptTypeX64ApicEoi)
    handler = rig.guest.assembler(base=layout.FREE)
    rig.guest.gate(0x41, layout.FREE)

    def eoi(code: Assembler) -> None:
        if page:
            code.mov(Mem(None, 0x1D00B0, size=4), 0)
        else:
            _write_x2apic(code, 0x80B, 0)

    eoi(handler)
    handler.out(END_PORT, "al")
    rig.guest.load(handler)
    rig.react = [remove(Type.HvInterceptTypeX64ApicEoi)]
    code = rig.guest.assembler()
    if page:
        code.mov("ebx", 0x1D0000)
        code.mov(Mem("rbx", 0xF0, size=4), 0x1FF)
    eoi(code)
    code.sti()
    if page:
        code.mov(Mem("rbx", 0x300, size=4), 0x44041)
    else:
        _write_x2apic(code, 0x83F, 0x41)
    code.nop()
    code.nop()
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeX64ApicEoi, 8)
    assert struct.unpack("<II", payload) == (0, 0x41)


@pytest.mark.parametrize(("icr", "told"), [(0x4500, True), (0x4608, True), (0x4041, False)])
@pytest.mark.tlfs("intercepts.init-sipi")
def test_init_and_sipi(rig: Rig, icr: int, told: bool) -> None:
    """The message has ICR; a fixed interrupt is sent as always."""
    _x2apic(rig)
    rig.install(Type.HvInterceptTypeX64ApicInitSipi)
    rig.react = [lambda rig: None]
    code = rig.guest.assembler()
    _write_x2apic(code, 0x830, 7 << 32 | icr)
    code.label("behind")
    code.out(END_PORT, "al")
    rig.run(code)
    if not told:
        assert rig.messages == []
        return
    payload = the_message(rig, HvMessageType.HvMessageTypeX64ApicInitSipiIntercept, 0x30)
    assert (number(payload, 4, 1), number(payload, 5, 1)) == (0, WRITE)
    assert number(payload, 0x18, 8) == code.at("behind")
    assert number(payload, 0x28, 8) == 7 << 32 | icr
