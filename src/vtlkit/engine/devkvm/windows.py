"""Leaving the guest where KVM has no exit for it: behind an IRET, at the end of a shadow, at an event's handler.

All by KVM_SET_GUEST_DEBUG: single steps, and a breakpoint where steps lead astray.
"""

from __future__ import annotations

from typing import Final

from vtlkit.engine.api import Event, EventType, Exit, Interrupted, InterruptWindow, NmiWindow
from vtlkit.engine.devkvm import abi
from vtlkit.engine.devkvm.exits import Exits
from vtlkit.engine.devkvm.kernel_events import EXCEPTION, INTERRUPT, NMI
from vtlkit.engine.devkvm.loop import Pending
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.probe import HLT
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import SUPERVISOR
from vtlkit.x86.registers import CR0_PE, DR6_BS, EFER_LMA, RFLAGS_IF, Sregs

_INTERRUPTED: Final = Interrupted()
_INTERRUPT_WINDOW: Final = InterruptWindow()
_NMI_WINDOW: Final = NmiWindow()
_PRESENT: Final = 0x80
_CROWD: Final = 8
"""So many interrupts in a row are stepped for: then the guest is to get on, with handlers that run as they can."""
_U32: Final = 0xFFFFFFFF


class Windows(Exits):
    """See the module."""

    steps_for_windows = False
    """This KVM misses short interrupt windows (`quirks`)."""
    _if_before = False
    """RFLAGS.IF before a step."""

    def _follow(self) -> None:
        """An NMI window opens behind IRET, or when a shadow ends; so may an interrupt window. KVM tells nobody: step,
        and over an IRET go to where it returns, as its flags end the stepping."""
        live = self._live
        enabled = self.regs.rflags & RFLAGS_IF
        wanted = self._nmi_window or (self._interrupt_window and (live.shadow if enabled else self._may_step()))
        if not wanted or not self._can_step or self._pending is Pending.IO or self.code.fetch(1) == HLT:
            # A step over HLT would be all that is seen of it.
            self._set_debug(0)
            return
        if live.shadow:
            # One instruction is executed and nothing injected: the shadow has done its work.
            live.shadow = 0
        self._if_before = bool(enabled)
        target = self._iret_target()
        if target is None:
            self._set_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_SINGLESTEP)
        else:
            self._set_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP, target)

    def _may_step(self) -> bool:
        """Whether to look for a short interrupt window: not for ever, as a step costs as much as an exit, and a handler
        that is stepped through may not end before the next interrupt comes."""
        if not self.steps_for_windows or not self._steps_left or self._crowded > _CROWD:
            return False
        self._steps_left -= 1
        return True

    def _set_debug(self, control: int, *breakpoints: int) -> None:
        if (control, breakpoints) != self._debug_set:
            data = self._bytes
            if control and not self._debug_set[0] and not (data[EXCEPTION] or data[INTERRUPT] or data[NMI]):
                # What the kernel has to take over and to finish goes first, without a step: in the same KVM_RUN it is
                # at times delivered to the guest, as its own #DB.
                self._finish()
            self._debug_set = control, breakpoints
            self.vcpu.set_guest_debug(control, breakpoints)

    def _iret_target(self) -> int | None:
        """Linear address that the instruction at RIP returns to, if it is IRET."""
        code = self.code.fetch(3)
        bits = self.code.bits()
        size = 8 if code[:2] == b"\x48\xcf" and bits == 64 else 0
        if code[:1] == b"\xcf":
            size = 2 if bits == 16 else 4
        elif code[:2] == b"\x66\xcf":
            size = 4 if bits == 16 else 2
        if not size:
            return None
        live = self._live
        try:
            stack = self.regs.rsp + (0 if bits == 64 else live.segments[abi.SS].base)
            frame = self.linear.read(stack, 2 * size)
        except (GuestFault, PhysicalFault):
            return None
        rip = int.from_bytes(frame[:size], "little")
        if not live.sregs.cr0 & CR0_PE:
            rip += int.from_bytes(frame[size:], "little") << 4 & 0xFFFF0
        return rip

    def _debug(self) -> Exit | None:
        """A step or a breakpoint of ours; or the guest's own #DB, which guest debugging shows to us."""
        debug = self._page.debug
        if debug.exception != Vector.DB or not debug.dr6 & (DR6_BS | 1):
            self._event = Event(EventType.EXCEPTION, debug.exception)
            return None
        live = self._live
        if live.shadow == abi.SHADOW_STI and self._if_before:
            # KVM's emulator has STI hold interrupts off also where they were on already.
            live.shadow = 0
        if live.shadow:
            return None
        if self._nmi_window and not live.nmi_masked:
            self._nmi_window = False
            return _NMI_WINDOW
        if self._interrupt_window and self.regs.rflags & RFLAGS_IF:
            self._interrupt_window = False
            return _INTERRUPT_WINDOW
        return None

    def _handlers(self, event: Event) -> tuple[int, ...]:
        """The event's, and those of faults that its delivery may end in. A processor has four breakpoints."""
        sregs = self._live.get_sregs()
        address, present = self._gate(sregs, event.vector)
        own = address if present else self._gate(sregs, Vector.NP)[0]
        return own, *(self._gate(sregs, vector)[0] for vector in (Vector.GP, Vector.PF, Vector.DF))

    def _gate(self, sregs: Sregs, vector: int) -> tuple[int, bool]:
        """Linear address of a vector's handler, 0 where none is to be found; whether its gate is present."""
        linear = self.linear
        try:
            if not sregs.cr0 & CR0_PE:
                gate = linear.read(sregs.idt.base + vector * 4, 4, mode=SUPERVISOR)
                return int.from_bytes(gate[:2], "little") + (int.from_bytes(gate[2:], "little") << 4), True
            size = 16 if sregs.efer & EFER_LMA else 8
            gate = linear.read(sregs.idt.base + vector * size, size, mode=SUPERVISOR)
            offset = int.from_bytes(gate[:2] + gate[6:8], "little")
            present = bool(gate[5] & _PRESENT)
            if size == 16:
                return offset | int.from_bytes(gate[8:12], "little") << 32, present
            selector = int.from_bytes(gate[2:4], "little") & ~7
            entry = linear.read(sregs.gdt.base + selector, 8, mode=SUPERVISOR)
            return (int.from_bytes(entry[2:5] + entry[7:8], "little") + offset) & _U32, present
        except (GuestFault, PhysicalFault):
            return 0, True

    def _deliver_only(self, handlers: tuple[int, ...]) -> Exit:
        """The kernel leaves before an injected event is delivered, if asked to leave at once: stop at the handler."""
        self._give_event()
        self._set_debug(abi.GUESTDBG_ENABLE | abi.GUESTDBG_USE_HW_BP, *handlers)
        try:
            while True:
                error = self._enter(False)
                if not error and self._page.exit_reason == abi.EXIT_DEBUG:
                    break
                reason = self._error(error, False) if error else self._exit()
                if reason is not None:
                    return reason
                # Again, if a late signal has stopped the kernel from delivering it.
                self._give_event()
        finally:
            self._set_debug(0)
        return self._stopped(True) or _INTERRUPTED
