"""SYSCALL, SYSRET, SYSENTER, SYSEXIT: segments, flags, entry points, and what raises #UD or #GP instead."""

from __future__ import annotations

from typing import Final

from vtlkit.engine import api
from vtlkit.testing.engine_conformance.suite import Bench, Need, case
from vtlkit.testing.guest_builder import (
    CODE,
    FREE,
    KERNEL_CODE64,
    RING0_STACK,
    USER_CODE32,
    USER_CODE64,
    Guest,
    segment,
)
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import EFER_SCE, RFLAGS_CF, RFLAGS_DF, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_TF, RFLAGS_ZF

_ENTRY: Final = FREE
_COMPAT_ENTRY: Final = FREE + 0x100
_SYSRET_BASE: Final = 0x18
"""SYSRET to 64-bit code takes CS at +16 and SS at +8: USER_CODE64 and USER_DATA; to 32-bit code CS at +0."""
_FLAGS: Final = RFLAGS_FIXED | RFLAGS_CF | RFLAGS_ZF | RFLAGS_DF | RFLAGS_IF


def _prepare(guest: Guest, cpl: int = 3, *, compat: bool = False, rflags: int = _FLAGS) -> None:
    guest.long_mode(cpl, rflags)
    engine = guest.engine
    engine.set_msr(msr.MSR_STAR, _SYSRET_BASE << 48 | KERNEL_CODE64 << 32)
    engine.set_msr(msr.MSR_LSTAR, _ENTRY)
    engine.set_msr(msr.MSR_CSTAR, _COMPAT_ENTRY)
    engine.set_msr(msr.MSR_SYSCALL_MASK, RFLAGS_IF | RFLAGS_DF | RFLAGS_ZF | RFLAGS_TF)
    engine.set_msr(msr.MSR_IA32_SYSENTER_CS, KERNEL_CODE64)
    engine.set_msr(msr.MSR_IA32_SYSENTER_ESP, RING0_STACK - 64)
    engine.set_msr(msr.MSR_IA32_SYSENTER_EIP, _ENTRY)
    if compat:
        sregs = engine.get_sregs()
        sregs.cs = segment(USER_CODE32)
        engine.set_sregs(sregs)
    guest.write(_ENTRY, b"\xf4\x48\x0f\x07")  # hlt; sysretq
    guest.write(_COMPAT_ENTRY, b"\xf4\x0f\x07")  # hlt; sysretl


def _at_entry(guest: Guest, entry: int) -> None:
    engine = guest.engine
    reason = engine.run(20)
    assert isinstance(reason, api.Hlt), (reason, hex(engine.regs.rip))
    assert engine.regs.rip == entry, hex(engine.regs.rip)
    assert engine.cpl == 0
    sregs = engine.get_sregs()
    assert (sregs.cs.selector, sregs.cs.dpl, sregs.cs.long) == (KERNEL_CODE64, 0, True)
    assert (sregs.ss.selector, sregs.ss.dpl) == (KERNEL_CODE64 + 8, 0)


@case(Need.MACHINE_CODE, Need.USER_HYPERCALL)
def syscall_enters_and_sysret_leaves_the_kernel(bench: Bench) -> None:
    """RCX and R11 hold RIP and RFLAGS, SFMASK clears flags, the CPL is 0 and 3 again."""
    guest = bench.guest()
    for prefix in (b"", b"\x2e"):
        _prepare(guest)
        engine = guest.engine
        code = prefix + b"\x0f\x05"
        guest.write(CODE, b"\x90" + code + b"\x0f\xa2")
        rsp = engine.regs.rsp
        _at_entry(guest, _ENTRY)
        after = CODE + 1 + len(code)
        assert engine.regs.rcx == after
        assert engine.regs.r11 == _FLAGS
        assert engine.rflags == RFLAGS_FIXED | RFLAGS_CF
        assert engine.regs.rsp == rsp
        engine.skip(1)
        reason = engine.run(20)
        assert isinstance(reason, bench.marker), reason
        assert engine.regs.rip == after
        assert engine.cpl == 3
        assert engine.rflags == _FLAGS
        assert engine.get_sregs().cs.selector == USER_CODE64


@case(Need.MACHINE_CODE, Need.USER_HYPERCALL)
def syscall_from_compatibility_mode(bench: Bench) -> None:
    """Enters 64-bit code at CSTAR; SYSRET goes back to 32-bit code."""
    guest = bench.guest()
    _prepare(guest, compat=True)
    engine = guest.engine
    guest.write(CODE, b"\x0f\x05\x48\x0f\xa2")  # syscall; dec eax; cpuid
    _at_entry(guest, _COMPAT_ENTRY)
    assert engine.regs.rcx == CODE + 2
    engine.regs.rax = 1
    engine.skip(1)
    reason = engine.run(20)
    assert isinstance(reason, bench.marker), reason
    assert engine.regs.rip == CODE + 3, "0x48 is an instruction of its own in 32-bit code"
    assert engine.regs.rax == 0
    assert engine.cpl == 3


@case(Need.MACHINE_CODE)
def syscall_is_invalid_while_disabled(bench: Bench) -> None:
    """EFER.SCE clear: #UD at the instruction, which has had no effect."""
    guest = bench.guest()
    _prepare(guest)
    engine = guest.engine
    engine.set_msr(msr.MSR_EFER, engine.get_msr(msr.MSR_EFER) & ~EFER_SCE)
    engine.regs.rcx = 7
    guest.write(CODE, b"\x90\x0f\x05\xf4")
    reason = engine.run(20)
    assert isinstance(reason, api.Hlt)
    assert engine.regs.rip == guest.handler(Vector.UD)
    assert guest.frame(1) == (CODE + 1,)
    assert engine.regs.rcx == 7


@case(Need.MACHINE_CODE)
def a_single_step_over_syscall_follows_the_mask(bench: Bench) -> None:
    """RFLAGS.TF that SFMASK clears does not trap in the kernel, and traps behind SYSRET at once."""
    guest = bench.guest()
    _prepare(guest, rflags=RFLAGS_FIXED)
    engine = guest.engine
    # pushfq; or dword [rsp], TF; popfq; syscall
    guest.write(CODE, b"\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d\x0f\x05\x90\x90")
    _at_entry(guest, _ENTRY)
    assert engine.regs.r11 & RFLAGS_TF
    engine.skip(1)
    reason = engine.run(20)
    assert isinstance(reason, api.Hlt)
    assert engine.regs.rip == guest.handler(Vector.DB)
    assert guest.frame(2) == (CODE + 11, USER_CODE64)


@case(Need.MACHINE_CODE)
def sysenter_enters_the_kernel(bench: Bench) -> None:
    """From 32-bit code: RIP and RSP from the MSRs, interrupts off, the other flags as they were."""
    guest = bench.guest()
    _prepare(guest, compat=True, rflags=RFLAGS_FIXED | RFLAGS_IF)
    engine = guest.engine
    guest.write(CODE, b"\x31\xc0\x0f\x34")  # xor eax, eax; sysenter
    _at_entry(guest, _ENTRY)
    assert engine.regs.rsp == RING0_STACK - 64
    assert engine.rflags & (RFLAGS_IF | RFLAGS_ZF) == RFLAGS_ZF


@case(Need.MACHINE_CODE)
def sysenter_without_a_segment(bench: Bench) -> None:
    """#GP(0) while the CS register is null."""
    guest = bench.guest()
    _prepare(guest, compat=True)
    engine = guest.engine
    engine.set_msr(msr.MSR_IA32_SYSENTER_CS, 0)
    guest.write(CODE, b"\x0f\x34")
    reason = engine.run(20)
    assert isinstance(reason, api.Hlt)
    assert engine.regs.rip == guest.handler(Vector.GP)
    assert guest.frame(2) == (0, CODE)
