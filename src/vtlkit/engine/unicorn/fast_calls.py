"""SYSCALL and SYSENTER, which Unicorn reports to a hook and does not execute.

Counterpart: `em_syscall` and `em_sysenter` of arch/x86/kvm/emulate.c; AMD APM volume 3, SYSCALL; Intel SDM volume 2B,
SYSENTER. The hook runs at the end of a block with all registers in memory, so all state may change; the instance adds
the instruction's length to RIP afterwards. Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType
from vtlkit.engine.unicorn.delivery import CS, SS
from vtlkit.engine.unicorn.descriptors import (
    DESC_ACCESSED,
    DESC_B,
    DESC_CODE,
    DESC_G,
    DESC_L,
    DESC_P,
    DESC_S,
    DESC_WRITABLE,
)
from vtlkit.engine.unicorn.state import HF_CS64, HF_LMA, CpuState
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import CR0_PE, EFER_SCE, RFLAGS_IF, RFLAGS_RF, RFLAGS_VM

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.instance import Instance

_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_RPL: Final = 3
_STAR_SYSCALL_CS: Final = 32
_FLAT_LIMIT: Final = 0xFFFFFFFF
_FLAT: Final = DESC_G | DESC_P | DESC_S | DESC_ACCESSED
_CODE64: Final = _FLAT | DESC_CODE | DESC_WRITABLE | DESC_L
_CODE32: Final = _FLAT | DESC_CODE | DESC_WRITABLE | DESC_B
_STACK: Final = _FLAT | DESC_WRITABLE | DESC_B
"""For code the writable bit says readable."""


def _enter_kernel(state: CpuState, selector: int) -> None:
    """Flat CS from `selector` and SS from the one behind it, at CPL 0."""
    code = _CODE64 if state.hflags & HF_LMA else _CODE32
    for number, value, flags in ((CS, selector, code), (SS, selector + 8, _STACK)):
        register = state.segs[number]
        register.selector = value & 0xFFFF & ~_RPL
        register.base = 0
        register.limit = _FLAT_LIMIT
        register.flags = flags


def syscall(engine: Instance, length: int) -> Event | None:
    """Execute SYSCALL, RIP left `length` bytes before the entry point; or the exception to raise instead."""
    state = engine.regs
    if not state.efer & EFER_SCE or not state.cr[0] & CR0_PE or state.eflags & RFLAGS_VM:
        return Event(EventType.EXCEPTION, Vector.UD)
    selector = state.star >> _STAR_SYSCALL_CS
    following = state.rip + length
    if state.hflags & HF_LMA:
        flags = engine.rflags & ~RFLAGS_RF
        in_64bit = state.hflags & HF_CS64
        state.rcx = following & (_U64 if in_64bit else _U32)
        state.r11 = flags
        engine.rflags = flags & ~(state.fmask & _U32)
        target = state.lstar if in_64bit else state.cstar
    else:
        state.rcx = following & _U32
        engine.change_rflags(clear=RFLAGS_IF | RFLAGS_RF)
        target = state.star & _U32
    _enter_kernel(state, selector)
    state.rip = (target - length) & _U64
    engine.update_hflags(0)
    return None


def sysenter(engine: Instance, length: int) -> Event | None:
    """Execute SYSENTER as `syscall` does. The translator writes the state of the arithmetic flags after the hook, so
    they are left alone."""
    state = engine.regs
    selector = state.sysenter_cs
    if not selector & 0xFFFC:
        return Event(EventType.EXCEPTION, Vector.GP, 0)
    engine.change_rflags(clear=RFLAGS_VM | RFLAGS_IF | RFLAGS_RF)
    _enter_kernel(state, selector)
    mask = _U64 if state.hflags & HF_LMA else _U32
    state.rsp = state.sysenter_esp & mask
    state.rip = ((state.sysenter_eip & mask) - length) & _U64
    engine.update_hflags(0)
    return None
