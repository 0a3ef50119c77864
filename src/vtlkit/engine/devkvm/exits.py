"""What KVM's exits mean to the hypervisor, and what happens to an instruction that one of them has left half done.

The kernel has its own idea of where RIP is at an exit: at the instruction or behind it, depending on whether the
processor or its emulator was executing. What is shown above is the engine contract's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from vtlkit.engine.api import (
    Access,
    Event,
    EventType,
    Exit,
    Hlt,
    Hypercall,
    InternalError,
    Interrupted,
    InterruptWindow,
    MemoryFault,
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
    Rdmsr,
    Shutdown,
    Wrmsr,
)
from vtlkit.engine.devkvm import abi
from vtlkit.engine.devkvm.live import REGS_END
from vtlkit.engine.devkvm.loop import Loop, Pending
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.memory_map import Kind, Range
from vtlkit.engine.processor import PortRead, PortWrite
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import SUPERVISOR
from vtlkit.x86.registers import EFER_LMA

HYPERCALL_PORT: Final = 0x7E
HYPERCALL: Final = bytes((0xE6, HYPERCALL_PORT))
"""OUT to a port that no device of a PC uses: an instruction that leaves the guest on any KVM, at CPL 0, in any mode. Of
this port alone KVM promises that RIP is behind the instruction when it exits (KVM_X86_QUIRK_OUT_7E_INC_RIP)."""
_LENGTH: Final = 2
"""Bytes of the hypercall's instruction, and of RDMSR and WRMSR without prefixes."""

_SHUTDOWN: Final = Shutdown()
_HLT: Final = Hlt(1)
_RDMSR: Final = Rdmsr(_LENGTH)
_WRMSR: Final = Wrmsr(_LENGTH)
_INTERRUPTED: Final = Interrupted()
_HYPERCALL: Final = Hypercall(_LENGTH)
_INTERRUPT_WINDOW: Final = InterruptWindow()
_IO: Final = struct.Struct("<BBHIQ")
_REASON: Final = abi.RUN_EXIT_REASON
"""Its lowest byte: the kernel has no reason above 255."""
_U32: Final = 0xFFFFFFFF
_U64: Final = (1 << 64) - 1


class Exits(Loop):
    """See the module."""

    _skip_from = 0
    """RIP at which the kernel has an instruction to move past."""
    _reads_msr = False
    _shown = b""
    """The general registers as they were told with a parked access."""
    _true = b""
    """The same as the kernel has them."""
    _port = (0, 0)
    """Number and size of the access to a port that is under way."""
    _reads = False
    _element = 0
    """Where in the page the element is that the hypervisor has been given last: string instructions have several."""
    _elements_end = 0
    """Where they end; 0 if it is no access to a port."""

    def _exit(self) -> Exit | None:
        handler = _HANDLERS.get(self._page.exit_reason)
        if handler is None:
            return InternalError(f"KVM exit {self._page.exit_reason} is not known")
        return handler(self)

    # --- instructions -----------------------------------------------------------------------------------------------

    def _hlt(self) -> Exit:
        """KVM has moved past it."""
        self._show_rip(self.regs.rip - 1)
        return _HLT

    def _show_rip(self, rip: int) -> None:
        self.regs.rip = rip & (_U64 if self.code.bits() == 64 else _U32)

    def _rdmsr(self) -> Exit:
        self._pending = Pending.SKIP
        self._skip_from = self.regs.rip
        self._reads_msr = True
        self._page.msr.error = 0
        return _RDMSR

    def _wrmsr(self) -> Exit:
        self._rdmsr()
        self._reads_msr = False
        return _WRMSR

    def _skip_resumed(self) -> None:
        """The kernel has yet to move past an instruction. It may if that is what the hypervisor has done."""
        regs, live = self.regs, self._live
        rip = self._skip_from
        # Where its paging has changed meanwhile, the kernel executes the instruction once more instead.
        plain = self._event is None and not self._flush and not live.dirty & abi.SYNC_SREGS
        if plain and regs.rip == rip + _LENGTH:
            regs.rip = rip
            if self._reads_msr:
                self._page.msr.data = regs.rax & _U32 | (regs.rdx & _U32) << 32
            self._pending = None
            return
        # The hypervisor has put the vCPU elsewhere, or leaves it there: let the kernel finish, then put it back.
        wanted, dirty = self._bytes[abi.RUN_SYNC : abi.RUN_EVENTS + 64], live.dirty
        self._bytes[abi.RUN_SYNC : REGS_END] = live.left
        live.dirty = 0
        self._finish()
        self._bytes[abi.RUN_SYNC : abi.RUN_SYNC + len(wanted)] = wanted
        live.dirty |= dirty
        self._pending = None

    # --- ports ------------------------------------------------------------------------------------------------------

    def _io(self) -> Exit:
        direction, size, port, count, at = _IO.unpack_from(self._live.view, abi.RUN_UNION)
        self._port = port, size
        self._element = at
        self._elements_end = at + size * count
        self._pending = Pending.IO
        self._reads = direction == abi.IO_IN
        if self._reads:
            return PortIn(port, size)
        if port == HYPERCALL_PORT and size == 1 and self._is_hypercall():
            self._pending = None
            self._elements_end = 0
            self._show_rip(self.regs.rip - _LENGTH)
            return _HYPERCALL
        return PortOut(
            port, size, self._bytes[at] if size == 1 else int.from_bytes(self._bytes[at : at + size], "little")
        )

    def _is_hypercall(self) -> bool:
        """The kernel has executed an OUT to the hypercall's port: that one, or the guest's by way of DX?"""
        return self.regs.rdx & 0xFFFF != HYPERCALL_PORT or self.code.fetch(_LENGTH, back=_LENGTH) == HYPERCALL

    def answer_ports(self, read: PortRead, write: PortWrite) -> None:
        data, view = self._bytes, self._live.view
        unpack, exit_io, io_in = _IO.unpack_from, abi.EXIT_IO, abi.IO_IN

        def answered() -> bool:
            """KVM_RUN has returned: for an access to a port that somebody answers without an exit?"""
            if data[_REASON] != exit_io:
                return False
            direction, size, port, count, at = unpack(view, abi.RUN_UNION)
            if count != 1 or port == HYPERCALL_PORT:
                return False
            if direction != io_in:
                return write(port, size, data[at] if size == 1 else int.from_bytes(data[at : at + size], "little"))
            value = read(port, size)
            if value is None:
                return False
            data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            return True

        self._answers = answered

    def _next_element(self) -> Exit | None:
        """Of a string instruction on a port, the next one that the kernel has put into the page."""
        port, size = self._port
        self._element = at = self._element + size
        if at >= self._elements_end:
            self._elements_end = 0
            return None
        if self._reads:
            return PortIn(port, size)
        return PortOut(port, size, int.from_bytes(self._bytes[at : at + size], "little"))

    def complete(self, value: int) -> None:
        assert self._pending is Pending.IO, "no instruction waits for a value"
        if self._elements_end:
            size, at = self._port[1], self._element
            self._bytes[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        else:
            self._answer(value)

    def _answer(self, value: int) -> None:
        """Of a load."""
        mmio = self._page.mmio
        size = mmio.len
        mmio.data[:size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    # --- memory -----------------------------------------------------------------------------------------------------

    def _mmio(self) -> Exit | None:
        mmio = self._page.mmio
        gpa = mmio.phys_addr
        item = self._map.find(gpa)
        if item is not None:
            if item.kind is Kind.EXIT:
                self._pending = Pending.IO
                if mmio.is_write:
                    return MmioWrite(gpa, mmio.len, self._mmio_value())
                return MmioRead(gpa, mmio.len)
            if item.kind is Kind.DEVICE:
                self._device(item, gpa)
                return None
            if self._emulates(item, mmio.is_write):
                self._access_ram(gpa)
                return None
        return self._park(gpa, item)

    def _mmio_value(self) -> int:
        mmio = self._page.mmio
        return int.from_bytes(bytes(mmio.data[: mmio.len]), "little")

    def _device(self, item: Range, gpa: int) -> None:
        assert item.read is not None
        assert item.write is not None
        mmio = self._page.mmio
        offset, size = gpa - item.gpa, mmio.len
        if mmio.is_write:
            item.write(offset, size, self._mmio_value())
        else:
            self._answer(item.read(offset, size))

    @staticmethod
    def _emulates(item: Range, write: int) -> bool:
        """Whether the guest may make the access, which came here as the range has no slot: it may not be executed."""
        return bool(item.access & (Access.WRITE if write else Access.READ))

    def _access_ram(self, gpa: int) -> None:
        """A load or store of RAM that the kernel has not been shown."""
        mmio = self._page.mmio
        found = self._map.ram(gpa, Access.NONE)
        assert found is not None
        block, offset = found
        if mmio.is_write:
            block.mapping[offset : offset + mmio.len] = bytes(mmio.data[: mmio.len])
        else:
            mmio.data[: mmio.len] = block.mapping[offset : offset + mmio.len]

    # --- refused accesses -------------------------------------------------------------------------------------------

    def _park(self, gpa: int, item: Range | None) -> Exit:
        """The kernel's emulator is in the middle of an access that the map does not permit: show the instruction as not
        begun. What comes of it is decided by what is there when the guest is entered again."""
        mmio = self._page.mmio
        self._true = self._bytes[abi.RUN_SYNC : REGS_END]
        access = Access.WRITE if mmio.is_write else Access.READ
        if mmio.is_write:
            self._show_rip(self.regs.rip - self.code.before_write(gpa, mmio.len))
        self._shown = self._bytes[abi.RUN_SYNC : REGS_END]
        self._pending = Pending.PARKED
        gva = next((r.gva for r in self.code.accesses() if self.code.leads_to(r, gpa)), None)
        return MemoryFault(gpa, mmio.len, access, item is not None and item.block is not None, gva)

    def _parked_resumed(self) -> Exit | None:
        """Go on with the access if the guest is where it was and something answers now; else undo it."""
        mmio = self._page.mmio
        item = self._map.find(mmio.phys_addr)
        live = self._live
        same = self._bytes[abi.RUN_SYNC : REGS_END] == self._shown and not live.dirty and self._event is None
        if same and item is not None and item.kind is not Kind.RAM:
            self._bytes[abi.RUN_SYNC : REGS_END] = self._true
            self._pending = None
            reason = self._mmio()
            if reason is None:
                self._pending = Pending.IO
                self._elements_end = 0
            return reason
        self._undo()
        return None

    def _undo(self) -> None:
        """Let the kernel finish without effect what it has begun, and put the registers back."""
        live = self._live
        wanted, dirty = self._bytes[abi.RUN_SYNC : abi.RUN_EVENTS + 64], live.dirty
        writes = [] if self._page.mmio.is_write else list(self.code.places_written())
        self._bytes[abi.RUN_SYNC : REGS_END] = self._true
        live.left, live.dirty = self._true, 0
        for gpa, size in writes:
            self._map.hold_back(gpa, size)
        self._page.mmio.data[:] = bytes(8)
        # Other accesses of the instruction come as exits of their own: loads read zero, stores go nowhere.
        while self._finish() and self._page.exit_reason == abi.EXIT_MMIO:
            self._page.mmio.data[:] = bytes(8)
        for gpa, size in writes:
            self._map.let_go(gpa, size)
        self._bytes[abi.RUN_SYNC : abi.RUN_SYNC + len(wanted)] = wanted
        live.dirty = dirty | abi.SYNC_EVENTS
        self._pending = None

    def _refused(self) -> Exit | None:
        """KVM_RUN has failed with EFAULT: RIP is at the instruction, or the delivery of an event made the access."""
        vectoring, self._event = self._event, None
        if vectoring is None and (fault := self.code.refused()) is not None:
            return fault
        page = self._page
        if page.exit_reason != abi.EXIT_MEMORY_FAULT:
            return InternalError(f"an access at RIP {self.regs.rip:#x} has no memory behind it")
        gpa = page.memory_fault.gpa
        item = self._map.find(gpa)
        access = Access.READ if item is None or not item.access & Access.READ else Access.WRITE
        return MemoryFault(gpa, 1, access, item is not None and item.block is not None, None, vectoring)

    def _internal_error(self) -> Exit | None:
        """The kernel cannot emulate an instruction: because it cannot be fetched, or another access is refused?"""
        internal = self._page.internal
        if internal.suberror == abi.INTERNAL_ERROR_EMULATION:
            if (fault := self.code.refused()) is not None:
                return fault
            if self._emulate_int():
                return None
        if internal.suberror == abi.INTERNAL_ERROR_DELIVERY and self._event is not None:
            vectoring, self._event = self._event, None
            gpa = internal.data[3] if internal.ndata > 3 else 0
            item = self._map.find(gpa)
            access = Access.WRITE if item is None else Access.READ
            return MemoryFault(gpa, 1, access, item is not None and item.block is not None, None, vectoring)
        code = self.code.fetch().hex(" ")
        return InternalError(f"KVM internal error {internal.suberror} at RIP {self.regs.rip:#x}, code {code}")

    def _emulate_int(self) -> bool:
        """INT3 and INT n outside real mode, which KVM's emulator does not know, where it is asked for them."""
        code = self.code.fetch(2)
        if code[:1] == b"\xcc":
            vector, length = int(Vector.BP), 1
        elif code[:1] == b"\xcd" and len(code) == 2:
            vector, length = code[1], 2
        else:
            return False
        live = self._live
        size = 16 if live.sregs.efer & EFER_LMA else 8
        try:
            gate = self.linear.read(live.get_sregs().idt.base + vector * size, size, mode=SUPERVISOR)
        except (GuestFault, PhysicalFault):
            return False
        if gate[5] >> 5 & 3 < live.cpl:
            self._event = Event(EventType.EXCEPTION, Vector.GP, vector << 3 | 2)
        else:
            self._event = Event(EventType.SOFTWARE, vector, None, length)
        self._give_event()
        return True

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _resume(self) -> Exit | None:
        if self._pending is Pending.SKIP:
            self._skip_resumed()
            return None
        if self._pending is Pending.PARKED:
            return self._parked_resumed()
        return self._next_element() if self._elements_end else None

    def _window_open(self) -> Exit | None:
        if not self._interrupt_window:
            return None
        self._interrupt_window = False
        return _INTERRUPT_WINDOW


_HANDLERS: Final[dict[int, Callable[[Exits], Exit | None]]] = {
    abi.EXIT_IO: Exits._io,
    abi.EXIT_DEBUG: lambda self: self._debug(),
    abi.EXIT_HLT: Exits._hlt,
    abi.EXIT_MMIO: Exits._mmio,
    abi.EXIT_IRQ_WINDOW_OPEN: Exits._window_open,
    abi.EXIT_SHUTDOWN: lambda _: _SHUTDOWN,
    abi.EXIT_FAIL_ENTRY: lambda self: InternalError(
        f"the processor refuses the guest's state: {self._page.hardware_entry_failure_reason:#x}"
    ),
    abi.EXIT_INTR: lambda _: None,
    abi.EXIT_SET_TPR: lambda _: _INTERRUPTED,
    abi.EXIT_INTERNAL_ERROR: Exits._internal_error,
    abi.EXIT_X86_RDMSR: Exits._rdmsr,
    abi.EXIT_X86_WRMSR: Exits._wrmsr,
}
