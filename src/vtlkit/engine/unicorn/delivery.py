"""Event delivery through the IDT: what the processor's microcode does and Unicorn leaves out.

Covers real mode, 16- and 32-bit protected mode (virtual-8086 included), and long mode with IST; inner-privilege stacks
from the TSS; error codes; double and triple faults (SDM volume 3, chapter 6; AMD APM volume 2, chapter 8). Task gates
are refused as an internal error: hardware task switching is not emulated.

A delivery that faults has changed nothing but accessed and dirty bits.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Event, EventType, ExceptionExit, Exit, InternalError, MemoryFault, Shutdown
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.unicorn.descriptors import (
    ACCESSED_IN_BYTE_5,
    DESC_ACCESSED,
    DESC_B,
    DESC_CODE,
    DESC_CONFORMING,
    DESC_DPL_SHIFT,
    DESC_L,
    DESC_P,
    DESC_S,
    DESC_TYPE_SHIFT,
    DESC_WRITABLE,
    LONG_GATE_SIZE,
    TWO_WORDS,
    Descriptor,
    Gate,
    accessed_descriptor,
    gate_of,
)
from vtlkit.engine.unicorn.state import HF2_NMI, HF_CPL, HF_INHIBIT_IRQ, HF_LMA, SegmentCache
from vtlkit.x86.exceptions import DOUBLE_FAULT, HAS_ERROR_CODE, SHUTDOWN, Vector, combine
from vtlkit.x86.registers import (
    CR0_PE,
    CR4_LA57,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.instance import Instance

_FRAME: Final = struct.Struct("<QQQQQ")
_FRAME_WITH_ERROR: Final = struct.Struct("<QQQQQQ")
_GATE_SIZE: Final = 8
_EXT: Final = 1
_IDT: Final = 2

_TASK_GATE: Final = 5
_INTERRUPT_16: Final = 6
_TRAP_16: Final = 7
_INTERRUPT_32: Final = 14
_TRAP_32: Final = 15
_GATES: Final = frozenset({_INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32})
_LONG_GATES: Final = frozenset({_INTERRUPT_32, _TRAP_32})
_CLEARED: Final = RFLAGS_TF | RFLAGS_VM | RFLAGS_RF | RFLAGS_NT
_CLEARED_BY: Final = {
    _INTERRUPT_16: _CLEARED | RFLAGS_IF,
    _INTERRUPT_32: _CLEARED | RFLAGS_IF,
    _TRAP_16: _CLEARED,
    _TRAP_32: _CLEARED,
}
"""Flags that entering through a gate clears."""

ES, CS, SS, DS, FS, GS = range(6)

_FAULTS: Final = frozenset(
    {Vector.DE, Vector.BR, Vector.UD, Vector.NM, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF}
    | {Vector.MF, Vector.AC, Vector.XM, Vector.VE, Vector.CP}
)
"""Exceptions whose saved RFLAGS has RF set, so that the restarted instruction does not hit its breakpoint again."""


class _TaskGate(Exception):
    pass


class Delivery:
    """Delivers events into one engine's CPU. Belongs to the vCPU's task."""

    def __init__(self, engine: Instance) -> None:
        self._engine = engine
        self._state = state = engine.regs
        self._linear = engine.linear
        # Views: each way to them through the state makes new ones.
        self._cr = state.cr
        self._idt, self._gdt, self._ldt, self._tr = state.idt, state.gdt, state.ldt, state.tr
        self._cs, self._ss = state.segs[CS], state.segs[SS]

    def deliver(self, event: Event) -> Exit | None:
        """Deliver `event` and whatever its delivery raises; an exit if the hypervisor must act first."""
        original = event
        first = True
        while True:
            try:
                self._deliver(event, self._start_of(event))
            except GuestFault as fault:
                combined = (
                    combine(event.vector, fault.vector) if event.type is EventType.EXCEPTION else None
                )  # interrupts, NMIs and INT n are benign
                if first and event.type is EventType.SOFTWARE:
                    self._state.rip -= event.instruction_length
                first = False
                if combined is SHUTDOWN:
                    return Shutdown()
                if combined is DOUBLE_FAULT:
                    event = Event(EventType.EXCEPTION, Vector.DF, 0)
                    address = 0
                else:
                    event = Event(EventType.EXCEPTION, fault.vector, fault.error_code)
                    address = fault.address
                if self._engine.exception_intercepts >> event.vector & 1:
                    return ExceptionExit(event.vector, event.error_code, address, original)
                if event.vector == Vector.PF:
                    self._state.cr[2] = address
            except PhysicalFault as fault:
                if first and event.type is EventType.SOFTWARE:
                    self._state.rip -= event.instruction_length
                return MemoryFault(fault.gpa, fault.size, fault.access, fault.mapped, fault.gva, original)
            except _TaskGate:
                return InternalError(f"vector {event.vector} has a task gate: task switches are not emulated")
            else:
                self._state.old_exception = -1
                self._state.hflags &= ~HF_INHIBIT_IRQ
                if event.type is EventType.NMI:
                    self._state.hflags2 |= HF2_NMI
                return None

    def _start_of(self, event: Event) -> int:
        """1 (EXT) if something outside the instruction stream causes the event."""
        return 0 if event.type is EventType.SOFTWARE else _EXT

    def _deliver(self, event: Event, ext: int) -> None:
        state = self._state
        if not self._cr[0] & CR0_PE:
            self._deliver_real(event)
        elif state.hflags & HF_LMA:
            self._deliver_long(event, ext)
        else:
            self._deliver_protected(event, ext)

    def _error_code(self, event: Event) -> int | None:
        if event.type is not EventType.EXCEPTION:
            return None
        if event.error_code is None and event.vector in HAS_ERROR_CODE:
            return 0
        return event.error_code

    def _saved_flags(self, event: Event) -> int:
        flags = self._engine.rflags
        if event.type is EventType.EXCEPTION and event.vector in _FAULTS:
            flags |= RFLAGS_RF
        return flags

    # --- real mode ------------------------------------------------------------------------------------------------

    def _deliver_real(self, event: Event) -> None:
        state = self._state
        offset = event.vector * 4
        if offset + 3 > self._idt.limit:
            raise GuestFault(Vector.GP, None)
        ip, cs = struct.unpack("<HH", self._linear.read(self._idt.base + offset, 4))
        frame = struct.pack("<HHH", state.rip & 0xFFFF, self._cs.selector, self._engine.rflags & 0xFFFF)
        sp = (state.rsp - 6) & 0xFFFF
        base = self._ss.base
        for at in range(0, 6, 2):
            self._linear.write(base + ((sp + at) & 0xFFFF), frame[at : at + 2])
        state.rsp = (state.rsp & ~0xFFFF) | sp
        state.rip = ip
        self._cs.selector = cs
        self._cs.base = cs << 4
        self._engine.change_rflags(clear=RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF)
        self._engine.update_hflags()

    # --- gates and descriptors ------------------------------------------------------------------------------------

    def _gate(self, event: Event, ext: int, size: int) -> Gate:
        """The event's gate, checked."""
        idt = self._idt
        start = event.vector * size
        error = event.vector * 8 | _IDT | ext
        if start + size - 1 > idt.limit:
            raise GuestFault(Vector.GP, error)
        gate = gate_of(self._linear.read(idt.base + start, size))
        if gate.kind == _TASK_GATE and size == _GATE_SIZE:
            raise _TaskGate
        if gate.kind not in (_LONG_GATES if size == LONG_GATE_SIZE else _GATES):
            raise GuestFault(Vector.GP, error)
        if event.type is EventType.SOFTWARE and gate.dpl < self._state.hflags & HF_CPL:
            raise GuestFault(Vector.GP, error)
        if not gate.present:
            raise GuestFault(Vector.NP, error)
        return gate

    def _descriptor(self, selector: int, vector: int, ext: int) -> Descriptor:
        """The descriptor that `selector` names; #vector(selector) if it lies outside its table."""
        table = self._ldt if selector & 4 else self._gdt
        index = selector & 0xFFF8
        if index + 7 > table.limit or (selector & 4 and not table.flags & DESC_P):
            raise GuestFault(vector, (selector & 0xFFFC) | ext)
        address = table.base + index
        raw = self._linear.read(address, 8)
        if raw[5] & ACCESSED_IN_BYTE_5:
            return accessed_descriptor(selector, address, raw)
        return Descriptor(selector, address, *TWO_WORDS.unpack(raw))

    def _code_segment(self, selector: int, ext: int, cpl: int) -> Descriptor:
        if not selector & 0xFFFC:
            raise GuestFault(Vector.GP, ext)
        code = self._descriptor(selector, Vector.GP, ext)
        error = (selector & 0xFFFC) | ext
        if not code.flags & DESC_S or not code.flags & DESC_CODE or code.dpl > cpl:
            raise GuestFault(Vector.GP, error)
        if not code.flags & DESC_P:
            raise GuestFault(Vector.NP, error)
        return code

    def _mark_accessed(self, descriptor: Descriptor) -> None:
        if not descriptor.flags & DESC_ACCESSED:
            descriptor.flags |= DESC_ACCESSED
            self._linear.write(descriptor.address + 4, struct.pack("<I", descriptor.flags), implicit=True)

    def _load(self, register: SegmentCache, descriptor: Descriptor, cpl: int) -> None:
        register.selector = (descriptor.selector & 0xFFFC) | cpl
        register.base = descriptor.base
        register.limit = descriptor.limit
        register.flags = descriptor.flags

    # --- long mode ------------------------------------------------------------------------------------------------

    def _deliver_long(self, event: Event, ext: int) -> None:
        state = self._state
        offset, selector, kind, ist, _, _ = self._gate(event, ext, LONG_GATE_SIZE)
        cpl = state.hflags & HF_CPL
        code = self._code_segment(selector, ext, cpl)
        if not code.flags & DESC_L or code.flags & DESC_B:
            raise GuestFault(Vector.GP, (selector & 0xFFFC) | ext)
        new_cpl = cpl if code.flags & DESC_CONFORMING else code.dpl
        if ist:
            rsp = self._tss64(0x24 + (ist - 1) * 8, ext)
        elif new_cpl < cpl:
            rsp = self._tss64(4 + new_cpl * 8, ext)
        else:
            rsp = state.rsp
        rsp &= ~0xF
        cs, ss = self._cs, self._ss
        error_code = self._error_code(event)
        frame = (state.rip, cs.selector, self._saved_flags(event), state.rsp, ss.selector)
        packed = _FRAME.pack(*frame) if error_code is None else _FRAME_WITH_ERROR.pack(error_code, *frame)
        rsp -= len(packed)
        top = rsp >> 47
        if top not in (0, 0x1FFFF) and not self._cr[4] & CR4_LA57:
            raise GuestFault(Vector.SS, ext)
        self._linear.write(rsp & 0xFFFFFFFFFFFFFFFF, packed)
        self._mark_accessed(code)
        same_kind = new_cpl == cpl and cs.flags == code.flags
        if new_cpl != cpl:
            ss.selector = new_cpl
            ss.base = 0
            ss.limit = 0
            ss.flags = new_cpl << DESC_DPL_SHIFT
        state.rsp = rsp & 0xFFFFFFFFFFFFFFFF
        self._load(cs, code, new_cpl)
        state.rip = offset
        self._engine.change_rflags(clear=_CLEARED_BY[kind])
        if not same_kind:
            # They follow from the segments' attributes, the CPL and control registers; and not from flags cleared here.
            self._engine.update_hflags(new_cpl)

    def _tss64(self, offset: int, ext: int) -> int:
        tr = self._tr
        if offset + 7 > tr.limit:
            raise GuestFault(Vector.TS, (tr.selector & 0xFFFC) | ext)
        value: int = struct.unpack("<Q", self._linear.read(tr.base + offset, 8))[0]
        return value

    # --- protected mode -------------------------------------------------------------------------------------------

    def _deliver_protected(self, event: Event, ext: int) -> None:
        state = self._state
        offset, selector, kind, _, _, _ = self._gate(event, ext, _GATE_SIZE)
        wide = kind in (_INTERRUPT_32, _TRAP_32)
        if not wide:
            offset &= 0xFFFF
        flags = self._engine.rflags
        v86 = bool(flags & RFLAGS_VM)
        cpl = 3 if v86 else state.hflags & HF_CPL
        code = self._code_segment(selector, ext, cpl)
        if v86 and (code.flags & DESC_CONFORMING or code.dpl):
            raise GuestFault(Vector.GP, (selector & 0xFFFC) | ext)
        new_cpl = cpl if code.flags & DESC_CONFORMING else code.dpl
        words = [self._saved_flags(event), state.segs[CS].selector, state.rip]
        stack: Descriptor | None = None
        if new_cpl < cpl:
            stack, esp = self._inner_stack(new_cpl, ext)
            words = [state.segs[SS].selector, state.rsp, *words]
            if v86:
                words = [state.segs[n].selector for n in (GS, FS, DS, ES)] + words
            base, big = stack.base, bool(stack.flags & DESC_B)
        else:
            esp = state.rsp
            base, big = state.segs[SS].base, bool(state.segs[SS].flags & DESC_B)
        error_code = self._error_code(event)
        if error_code is not None:
            words.append(error_code)
        size = 4 if wide else 2
        mask = 0xFFFFFFFF if big else 0xFFFF
        frame = b"".join((word & (1 << 8 * size) - 1).to_bytes(size, "little") for word in reversed(words))
        sp = (esp - len(frame)) & mask
        before_wrap = min(len(frame), mask + 1 - sp)
        self._linear.write((base + sp) & 0xFFFFFFFF, frame[:before_wrap])
        if before_wrap < len(frame):
            self._linear.write(base, frame[before_wrap:])
        self._mark_accessed(code)
        if stack is not None:
            self._load(state.segs[SS], stack, new_cpl)
            if v86:
                for number in (GS, FS, DS, ES):
                    register = state.segs[number]
                    register.selector = register.base = register.limit = register.flags = 0
        state.rsp = (state.rsp & ~mask & 0xFFFFFFFF) | sp if stack is None else sp
        self._load(state.segs[CS], code, new_cpl)
        state.rip = offset
        self._engine.change_rflags(clear=_CLEARED_BY[kind])
        self._engine.update_hflags(new_cpl)

    def _inner_stack(self, cpl: int, ext: int) -> tuple[Descriptor, int]:
        """SS descriptor and ESP for `cpl` from the 32- or 16-bit TSS."""
        state = self._state
        tss_error = (state.tr.selector & 0xFFFC) | ext
        if (state.tr.flags >> DESC_TYPE_SHIFT) & 0xF in (9, 11):
            at = 4 + cpl * 8
            if at + 7 > state.tr.limit:
                raise GuestFault(Vector.TS, tss_error)
            esp, selector = struct.unpack("<IHxx", self._linear.read(state.tr.base + at, 8))
        else:
            at = 2 + cpl * 4
            if at + 3 > state.tr.limit:
                raise GuestFault(Vector.TS, tss_error)
            esp, selector = struct.unpack("<HH", self._linear.read(state.tr.base + at, 4))
        error = (selector & 0xFFFC) | ext
        if not selector & 0xFFFC:
            raise GuestFault(Vector.TS, ext)
        stack = self._descriptor(selector, Vector.TS, ext)
        if (
            selector & 3 != cpl
            or stack.dpl != cpl
            or not stack.flags & DESC_S
            or stack.flags & DESC_CODE
            or not stack.flags & DESC_WRITABLE
        ):
            raise GuestFault(Vector.TS, error)
        if not stack.flags & DESC_P:
            raise GuestFault(Vector.SS, error)
        return stack, esp
