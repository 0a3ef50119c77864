"""Ports and memory-mapped I/O: hooks inside translated code, which leave an instruction unfinished behind them.

The rest of the block still runs after such a hook, so between its exit and the next `run` registers may be read only.
Belongs to the vCPU's task.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from greenlet import getcurrent, greenlet

from vtlkit.engine.api import (
    Event,
    EventType,
    Exit,
    MmioRead,
    MmioRead8,
    MmioWrite,
    MmioWrite8,
    PortBitmap,
    PortIn,
    PortIntercept,
    PortOut,
    touches_port,
)
from vtlkit.engine.decode import MAX_LENGTH, string_io
from vtlkit.engine.linear import GuestFault, PhysicalFault
from vtlkit.engine.unicorn.memory import Kind
from vtlkit.engine.unicorn.state import (
    HF_CPL,
)
from vtlkit.engine.unicorn.stopping import Stopping
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import (
    CR0_PE,
    RFLAGS_VM,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory

_IOPL_SHIFT: Final = 12


class InputOutput(Stopping):
    """Exits of I/O instructions, the privilege that they need, and device callbacks."""

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        super().__init__(factory, name)
        self._answer = 0
        self._unfinished = False
        self._caller: greenlet = getcurrent()
        """Where exits go: the greenlet that called `run`."""
        self._port_intercepts: tuple[PortBitmap | None, PortBitmap | None] | None = None
        """Bitmaps for IN and OUT, if any port is intercepted."""

    def complete(self, value: int) -> None:
        self._answer = value

    @property
    def at_boundary(self) -> bool:
        return not self._unfinished

    # --- ports --------------------------------------------------------------------------------------------------------

    def _on_in(self, _uc: int, port: int, size: int, _data: int) -> int:
        if self._undo is not None or self._io_denied(port, size):
            return 0
        if self._port_intercepts is not None and self._port_intercepted(port, size, False):
            return 0
        self._note_flags()
        self._unfinished = True
        self._caller.switch(PortIn(port, size))
        return self._answer

    def _on_out(self, _uc: int, port: int, size: int, value: int, _data: int) -> None:
        if self._undo is not None or self._io_denied(port, size):
            return
        if self._port_intercepts is not None and self._port_intercepted(port, size, True):
            return
        self._note_flags()
        self._unfinished = True
        self._caller.switch(PortOut(port, size, value & ((1 << size * 8) - 1)))

    def _io_denied(self, port: int, size: int) -> bool:
        """Check I/O privilege, which the translator does not; arrange for #GP if it is denied.

        Where instructions are not counted, RIP is that of the block: the translator does not tell a port hook more.
        """
        if not self._cr0.value & CR0_PE:
            return False
        eflags = self._eflags.value
        if not eflags & RFLAGS_VM and (self._hflags.value & HF_CPL) <= eflags >> _IOPL_SHIFT & 3:
            return False
        address = 0
        try:
            if not self._io_bitmap_denies(port, size):
                return False
            event = Event(EventType.EXCEPTION, Vector.GP, 0)
        except GuestFault as fault:
            address = fault.address
            event = Event(EventType.EXCEPTION, fault.vector, fault.error_code)
        except PhysicalFault:
            event = Event(EventType.EXCEPTION, Vector.GP, 0)
        self._raise_after(event, address)
        return True

    def _io_bitmap_denies(self, port: int, size: int) -> bool:
        state = self.regs
        tr = state.tr
        if (tr.flags >> 8) & 0xF not in (9, 11) or tr.limit < 0x67:
            return True
        base = int.from_bytes(self.linear.read(tr.base + 0x66, 2), "little") + port // 8
        if base + 1 > tr.limit:
            return True
        bits = int.from_bytes(self.linear.read(tr.base + base, 2), "little") >> (port & 7)
        return bool(bits & ((1 << size) - 1))

    @property
    def intercepts_ports(self) -> bool:
        return self._counting

    def set_port_intercepts(self, reads: PortBitmap | None, writes: PortBitmap | None) -> None:
        if reads is None and writes is None:
            self._port_intercepts = None
            return
        if not self._counting:
            raise ValueError("ports are intercepted where instructions are counted: only there the hook knows RIP")
        self._port_intercepts = reads, writes

    def _port_intercepted(self, port: int, size: int, write: bool) -> bool:
        """Whether the access is intercepted; then it is undone, and `_port_exit` is the exit."""
        assert self._port_intercepts is not None
        if not touches_port(self._port_intercepts[write], port, size):
            return False
        self._leave_after(partial(self._port_exit, port, size, write))
        return True

    def _port_exit(self, port: int, size: int, write: bool) -> Exit:
        code = self.instruction_bytes(MAX_LENGTH)
        string, rep = string_io(code, self._bits())
        return PortIntercept(self.instruction_length(code), port, size, write, string, rep)

    # --- memory-mapped ------------------------------------------------------------------------------------------------

    def map_exit(self, gpa: int, size: int) -> None:
        self._map.map_hooks(
            gpa,
            size,
            Kind.EXIT,
            lambda _uc, offset, length, _data: self._mmio_read(gpa + offset, length),
            lambda _uc, offset, length, value, _data: self._mmio_write(gpa + offset, length, value),
        )

    def map_device(self, gpa: int, size: int, read: MmioRead8, write: MmioWrite8) -> None:
        def guarded_read(_uc: int, offset: int, length: int, _data: int) -> int:
            if self._undo is not None:
                return 0
            try:
                return read(offset, length)
            except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
                self._failure = error
                self._kick_self()
                return 0

        def guarded_write(_uc: int, offset: int, length: int, value: int, _data: int) -> None:
            if self._undo is not None:
                return
            try:
                write(offset, length, value)
            except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
                self._failure = error
                self._kick_self()

        self._map.map_hooks(gpa, size, Kind.DEVICE, guarded_read, guarded_write)

    def _mmio_read(self, gpa: int, size: int) -> int:
        if self._undo is not None:
            return 0
        self._find_instruction()
        self._unfinished = True
        self._caller.switch(MmioRead(gpa, size))
        return self._answer

    def _mmio_write(self, gpa: int, size: int, value: int) -> None:
        if self._undo is not None:
            return
        self._find_instruction()
        self._unfinished = True
        self._caller.switch(MmioWrite(gpa, size, value & ((1 << size * 8) - 1)))
