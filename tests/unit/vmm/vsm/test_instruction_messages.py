"""Intercepts of instructions and exceptions in real machine code: the messages byte by byte, and what follows."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.vmm.vsm.instruction_rig import END_PORT, GPRS, Rig, number, program
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.messages import HvMessageType
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.vsm import HvCrInterceptControl as Control
from vtlkit.testing import guest_builder as layout
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR4_OSXSAVE, RFLAGS_FIXED, RFLAGS_TF

PORT = 0x3F8
DATA = 0x1C0000
NOWHERE = 0x7F0000001000
READ, WRITE, EXECUTE = 0, 1, 2
STATE_64 = 1 << 2 | 1 << 4
"""CR0.PE, EFER.LMA, CPL 0, VTL 0."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.guest.long_mode()
    yield rig
    rig.factory.close()


def remove(kind: Type, parameter: int = 0) -> Callable[[Rig], None]:
    return lambda rig: rig.install(kind, parameter, 0)


def the_message(rig: Rig, kind: HvMessageType, size: int) -> bytes:
    """The payload of the only message: its header is checked, and that nothing is behind it."""
    (message,) = rig.messages
    assert (number(message, 0, 4), number(message, 4, 1), number(message, 8, 8)) == (kind, size, 1)
    assert not any(message[16 + size :])
    return message[16 : 16 + size]


def check_header(rig: Rig, payload: bytes, code: Assembler, access: int, *, state: int = STATE_64) -> None:
    """Of a message about the instruction at `target`."""
    start, length = code.at("target"), code.at("next") - code.at("target")
    assert number(payload, 0, 4) == 0
    assert number(payload, 4, 1) == length
    assert number(payload, 5, 1) == access
    assert number(payload, 6, 2) == state
    assert (number(payload, 8, 8), number(payload, 0x10, 4)) == (0, 0xFFFFFFFF)
    assert (number(payload, 0x14, 2), number(payload, 0x16, 2)) == (layout.KERNEL_CODE64, 0xA09B)
    assert number(payload, 0x18, 8) == start
    assert number(payload, 0x20, 8) == rig.states[0]["rflags"]
    assert rig.states[0]["rip"] == start


def code_at(rig: Rig, code: Assembler, size: int = 16) -> bytes:
    return bytes(rig.ram.view[code.at("target") : code.at("target") + size])


def test_the_header_says_in_which_state(rig: Rig) -> None:
    """User mode with breakpoints armed, alignment checks on, a task priority, and an interrupt shadow."""
    rig.guest.long_mode(cpl=3, rflags=RFLAGS_FIXED | 0x3000)
    sregs = rig.vcpu.get_sregs()
    sregs.cr8 = 5
    sregs.cr0 |= 1 << 18
    rig.vcpu.set_sregs(sregs)
    rig.vcpu.engine.set_debugregs((0, 0, 0, 0, 0xFFFF0FF0, 0x402))
    rig.install(Type.HvInterceptTypeX64IoPort, PORT)
    rig.react = [remove(Type.HvInterceptTypeX64IoPort, PORT)]
    code = rig.guest.assembler()
    code.mov("edx", PORT)
    code.sti()
    code.label("target")
    code.out("dx", "al")
    code.label("next")
    code.out(END_PORT, "al")
    rig.run(code)
    (message,) = rig.messages
    payload = message[16:]
    assert number(payload, 4, 1) == 1 | 5 << 4
    assert number(payload, 6, 2) == 3 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 12
    assert (number(payload, 0x14, 2), number(payload, 0x16, 2)) == (layout.USER_CODE64, 0xA0FB)
    assert number(payload, 0x18, 8) == code.at("target")


# --- ports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("emit", "size", "write"),
    [
        (lambda code: code.out("dx", "al"), 1, True),
        (lambda code: code.out("dx", "ax"), 2, True),
        (lambda code: code.out("dx", "eax"), 4, True),
        (lambda code: code.in_("eax", "dx"), 4, False),
        (lambda code: code.in_("al", "dx"), 1, False),
    ],
)
@pytest.mark.tlfs("intercepts.io-port")
def test_a_port(rig: Rig, emit: Any, size: int, write: bool) -> None:
    rig.install(Type.HvInterceptTypeX64IoPort, PORT)
    rig.react = [lambda rig: rig.skip(1 if size != 2 else 2)]

    def body(code: Assembler) -> None:
        code.mov("edx", PORT)
        code.label("target")
        emit(code)

    code = program(rig, body)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeX64IoPortIntercept, 0x80)
    (message,) = rig.messages
    start, length = code.at("target"), code.at("next") - code.at("target")
    assert (number(payload, 4, 1), number(payload, 5, 1)) == (length, int(write))
    assert number(payload, 0x18, 8) == start
    assert (number(payload, 0x28, 2), number(payload, 0x2A, 1), number(payload, 0x2B, 1)) == (PORT, size, 16)
    assert number(payload, 0x2C, 4) == 0
    (state,) = rig.states
    assert number(payload, 0x30, 8) == state["rax"]
    assert payload[0x38:0x48] == bytes(rig.ram.view[start : start + 16])
    for offset in (0x48, 0x58):
        assert (number(payload, offset, 8), number(payload, offset + 8, 4)) == (0, 0xFFFFFFFF)
        assert (number(payload, offset + 12, 2), number(payload, offset + 14, 2)) == (layout.KERNEL_DATA, 0xC093)
    assert struct.unpack_from("<QQQ", payload, 0x68) == (state["rcx"], state["rsi"], state["rdi"])
    assert message[16 + 0x80 :] == bytes(256 - 16 - 0x80)


@pytest.mark.tlfs("intercepts.io-port", "intercepts.handling")
def test_a_read_is_emulated(rig: Rig) -> None:
    """VTL1 puts the value into RAX, as it returns, and RIP behind the instruction: no device has been asked."""

    def emulate(rig: Rig) -> None:
        regs = rig.vcpu.get_regs()
        rax = regs.rax & ~0xFF | 0x5A
        rig.vp.vcpus[1].hv.assist.write(16, struct.pack("<QQ", rax, regs.rcx))
        rig.skip(1)

    rig.install(Type.HvInterceptTypeX64IoPort, PORT, 1)
    rig.react = [emulate]
    code = rig.guest.assembler()
    code.mov("edx", PORT)
    code.mov("eax", 0x11223344)
    code.in_("al", "dx")
    code.mov("ebx", "eax")
    code.out(END_PORT, "al")
    rig.run(code)
    assert len(rig.messages) == 1
    assert rig.vcpu.get_regs().rbx == 0x1122335A


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.tlfs("intercepts.io-port")
def test_string_output(rig: Rig, repeated: bool) -> None:
    """Each element is told, by itself; a segment prefix and REP are in the instruction."""
    count = 3 if repeated else 1
    rig.install(Type.HvInterceptTypeX64IoPortRange, PORT | PORT + 7 << 16, 2)
    seen: list[tuple[int, int, int]] = []

    def emulate(rig: Rig) -> None:
        payload = rig.messages[-1][16:]
        assert (number(payload, 0x28, 2), number(payload, 0x2A, 1)) == (PORT + 3, 4 | 1 << 3 | repeated << 4)
        seen.append((number(payload, 0x68, 8), number(payload, 0x70, 8), number(payload, 0x78, 8)))
        if len(seen) == count:
            rig.install(Type.HvInterceptTypeX64IoPortRange, PORT | PORT + 7 << 16, 0)
            rig.skip(2 if repeated else 1)

    rig.react = [emulate] * count
    code = rig.guest.assembler()
    for name, value in (("rdx", PORT + 3), ("rsi", DATA), ("rdi", 77), ("rcx", 9)):
        code.mov(name, value)
    (code.rep if repeated else code).outsd()
    code.out(END_PORT, "al")
    rig.run(code)
    # Nothing moved on: the handler did not say so.
    assert seen == [(9, DATA, 77)] * count


@pytest.mark.tlfs("intercepts.io-port")
def test_a_repeated_string_goes_on_when_the_intercept_is_lifted(rig: Rig) -> None:
    rig.install(Type.HvInterceptTypeX64IoPort, PORT, 2)
    rig.react = [remove(Type.HvInterceptTypeX64IoPort, PORT)]
    rig.host_ports = [PORT]
    code = rig.guest.assembler()
    for name, value in (("rdx", PORT), ("rsi", DATA), ("rcx", 4)):
        code.mov(name, value)
    rig.ram.view[DATA : DATA + 4] = b"abcd"
    code.rep.outsb()
    code.out(END_PORT, "al")
    rig.run(code)
    assert len(rig.messages) == 1
    assert rig.written == [(PORT, byte) for byte in b"abcd"]


# --- MSRs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [msr.MSR_LSTAR, msr.MSR_IA32_TSC, 0x12345, 0x40000000])
@pytest.mark.parametrize("write", [False, True])
@pytest.mark.tlfs("intercepts.msr", "intercepts.handling")
def test_an_msr(rig: Rig, index: int, write: bool) -> None:
    """Also one that is not there, and those that the processor reads by itself; #GP is what VTL1 answers."""
    rig.install(Type.HvInterceptTypeX64Msr, index, 3)
    rig.react = [lambda rig: rig.set(Name.HvRegisterPendingEvent0, 1 | 1 << 8 | 13 << 16)]
    rig.guest.write(rig.guest.handler(13), bytes((0xE6, END_PORT)))

    def body(code: Assembler) -> None:
        code.mov("ecx", index)
        code.label("target")
        code.wrmsr() if write else code.rdmsr()

    code = program(rig, body)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeMsrIntercept, 0x40)
    check_header(rig, payload, code, int(write))
    (state,) = rig.states
    assert struct.unpack_from("<IIQQ", payload, 0x28) == (index, 0, state["rdx"], state["rax"])
    assert rig.guest.frame(6)[:2] == (0, code.at("target"))


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


# --- CPUID and hypercalls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.tlfs("intercepts.cpuid")
def test_cpuid(rig: Rig, everything: bool) -> None:
    kind, parameter = (
        (Type.HvInterceptTypeX64GlobalCpuid, 0) if everything else (Type.HvInterceptTypeX64Cpuid, 0x80000000)
    )
    rig.install(kind, parameter)
    rig.react = [remove(kind, parameter)]

    def body(code: Assembler) -> None:
        code.mov("eax", 0x80000000)
        code.mov("ecx", 7)
        code.label("target")
        code.cpuid()

    code = program(rig, body)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeX64CpuidIntercept, 0x68)
    check_header(rig, payload, code, EXECUTE)
    (state,) = rig.states
    asked = struct.unpack_from("<4Q", payload, 0x28)
    assert asked == (0x80000000, 7, state["rdx"], state["rbx"])
    rax, rcx, rdx, rbx = struct.unpack_from("<4Q", payload, 0x48)
    regs = rig.vcpu.get_regs()
    # Lifted, it answers what the message said it would.
    assert (rax, rcx, rdx, rbx) == (regs.rax, regs.rcx, regs.rdx, regs.rbx)
    assert rax == 0x80000008


@pytest.mark.tlfs("intercepts.hypercall")
def test_a_hypercall(rig: Rig) -> None:
    rig.vcpu.vm.hv.set_guest_os_id(1)
    rig.install(Type.HvInterceptTypeHypercall)
    rig.react = [remove(Type.HvInterceptTypeHypercall)]
    xmm = bytes(range(96))
    image = rig.vcpu.engine.get_fpu()
    rig.vcpu.engine.set_fpu(image[:160] + xmm + image[256:])

    def body(code: Assembler) -> None:
        # HvCallNotifyLongSpinWait, fast.
        code.mov("rcx", 0x10008)
        code.label("target")
        code.vmmcall()

    code = program(rig, body)
    rig.run(code)
    payload = the_message(rig, HvMessageType.HvMessageTypeHypercallIntercept, 0xD0)
    check_header(rig, payload, code, EXECUTE)
    (state,) = rig.states
    names = ("rax", "rbx", "rcx", "rdx", "r8", "rsi", "rdi")
    assert struct.unpack_from("<7Q", payload, 0x28) == tuple(state[name] for name in names)
    assert payload[0x60:0xC0] == xmm
    assert payload[0xC0:0xD0] == bytes(16)
    assert rig.vcpu.get_regs().rax == 0


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
