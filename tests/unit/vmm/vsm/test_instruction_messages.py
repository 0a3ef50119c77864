"""Intercepts of ports, MSRs, CPUID and hypercalls in real machine code: the messages byte by byte, and what follows."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.vmm.vsm.instruction_rig import (
    END_PORT,
    EXECUTE,
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
from vtlkit.testing.assembler import Assembler
from vtlkit.x86 import msr
from vtlkit.x86.registers import RFLAGS_FIXED

PORT = 0x3F8
DATA = 0x1C0000


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.guest.long_mode()
    yield rig
    rig.factory.close()


@pytest.mark.tlfs("intercepts.header")
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
    sregs = rig.vcpu.get_sregs()
    sregs.es.selector = layout.USER_DATA
    rig.vcpu.set_sregs(sregs)
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
    for offset, selector in ((0x48, layout.KERNEL_DATA), (0x58, layout.USER_DATA)):
        assert (number(payload, offset, 8), number(payload, offset + 8, 4)) == (0, 0xFFFFFFFF)
        assert (number(payload, offset + 12, 2), number(payload, offset + 14, 2)) == (selector, 0xC093)
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
