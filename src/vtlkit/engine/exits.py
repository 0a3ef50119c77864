"""Why a CPU stopped, and the events that it takes. Part of the contract: import from `engine.api`.

Counterpart: EXITCODE with EXITINFO1/2, EXITINTINFO and EVENTINJ of the VMCB (AMD APM volume 2, appendices B and C).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from vtlkit.engine.ram import Access


class EventType(enum.IntEnum):
    """What is delivered through the IDT. Values: EVENTINJ.TYPE of the AMD APM, volume 2, section 15.20."""

    INTERRUPT = 0
    NMI = 2
    EXCEPTION = 3
    SOFTWARE = 4


@dataclass(frozen=True, slots=True)
class Event:
    """An event to deliver, or one whose delivery an exit interrupted (EVENTINJ / EXITINTINFO)."""

    type: EventType
    vector: int
    error_code: int | None = None
    instruction_length: int = 0
    """SOFTWARE only: bytes that the saved RIP moves past the INT instruction."""


class Exit:
    """Why `Engine.run` returned. One subclass per reason; instances are values and are not changed."""

    __slots__ = ()
    name: ClassVar[str] = "exit"
    fault_like: ClassVar[bool] = True
    """True if RIP is at the exiting instruction, which the hypervisor skips; False if the next `run` finishes it."""


class Interrupted(Exit):
    """The budget is used up, the vCPU was kicked, or an immediate exit was forced: nothing to handle."""

    __slots__ = ()
    name = "interrupted"


class InterruptWindow(Exit):
    """The guest became able to take an interrupt, as asked by `request_interrupt_window`."""

    __slots__ = ()
    name = "interrupt_window"


class NmiWindow(Exit):
    """The guest became able to take an NMI, as asked by `request_nmi_window`."""

    __slots__ = ()
    name = "nmi_window"


class PreemptionTimer(Exit):
    """The preemption timer has run down: see `Engine.set_preemption_timer`."""

    __slots__ = ()
    name = "preemption_timer"


class Instruction(Exit):
    """An intercepted instruction. RIP is at it; its length is `length` bytes; operands are in the registers."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length


class Cpuid(Instruction):
    __slots__ = ()
    name = "cpuid"


class Hlt(Instruction):
    __slots__ = ()
    name = "hlt"


class Rdmsr(Instruction):
    __slots__ = ()
    name = "rdmsr"


class Wrmsr(Instruction):
    __slots__ = ()
    name = "wrmsr"


class Hypercall(Instruction):
    """VMMCALL (or VMCALL on an engine whose hypercall instruction that is)."""

    __slots__ = ()
    name = "hypercall"


class Pause(Instruction):
    __slots__ = ()
    name = "pause"


class Rdtsc(Instruction):
    """RDTSC, or RDTSCP if `with_aux`."""

    __slots__ = ("with_aux",)
    name = "rdtsc"

    def __init__(self, length: int, with_aux: bool) -> None:
        super().__init__(length)
        self.with_aux = with_aux


class Other(Instruction):
    """Any other intercepted instruction: `mnemonic` in lower case (`invlpg`, `vmrun`, `sgdt`, `xsetbv`, ...)."""

    __slots__ = ("mnemonic",)
    name = "instruction"

    def __init__(self, length: int, mnemonic: str) -> None:
        super().__init__(length)
        self.mnemonic = mnemonic


class ControlRegister(Instruction):
    """MOV to or from a control or debug register: CR number 0..8, or 16 + DR number. `gpr`: the general register's."""

    __slots__ = ("gpr", "register", "write")
    name = "cr_access"

    def __init__(self, length: int, register: int, gpr: int, write: bool) -> None:
        super().__init__(length)
        self.register = register
        self.gpr = gpr
        self.write = write


class PortIn(Exit):
    """IN or one element of INS. The engine finishes the instruction with the value given to `complete`."""

    __slots__ = ("port", "size")
    name = "io"
    fault_like = False

    def __init__(self, port: int, size: int) -> None:
        self.port = port
        self.size = size


class PortOut(Exit):
    """OUT or one element of OUTS; `value` has `size` bytes (1, 2, 4)."""

    __slots__ = ("port", "size", "value")
    name = "io"
    fault_like = False

    def __init__(self, port: int, size: int, value: int) -> None:
        self.port = port
        self.size = size
        self.value = value


class PortIntercept(Instruction):
    """IN, OUT, INS or OUTS on an intercepted port, before it begins; `string` with the element whose turn it is."""

    __slots__ = ("port", "rep", "size", "string", "write")
    name = "io_intercept"

    def __init__(self, length: int, port: int, size: int, write: bool, string: bool, rep: bool) -> None:
        super().__init__(length)
        self.port = port
        self.size = size
        self.write = write
        self.string = string
        self.rep = rep


class MmioRead(Exit):
    """A load from a range mapped with `map_exit`. The engine finishes it with the value given to `complete`."""

    __slots__ = ("gpa", "size")
    name = "mmio"
    fault_like = False

    def __init__(self, gpa: int, size: int) -> None:
        self.gpa = gpa
        self.size = size


class MmioWrite(Exit):
    """A store to a range mapped with `map_exit`."""

    __slots__ = ("gpa", "size", "value")
    name = "mmio"
    fault_like = False

    def __init__(self, gpa: int, size: int, value: int) -> None:
        self.gpa = gpa
        self.size = size
        self.value = value


class MemoryFault(Exit):
    """An access that the guest-physical map does not permit. RIP is at the instruction, which has had no effect.

    `gva` is None where the engine does not know it. `vectoring` is the event whose delivery made the access, if any:
    it has not been delivered.
    """

    __slots__ = ("access", "gpa", "gva", "mapped", "size", "vectoring")
    name = "memory_fault"

    def __init__(
        self, gpa: int, size: int, access: Access, mapped: bool, gva: int | None = None, vectoring: Event | None = None
    ) -> None:
        self.gpa = gpa
        self.size = size
        self.access = access
        self.mapped = mapped
        self.gva = gva
        self.vectoring = vectoring


class ExceptionExit(Exit):
    """An intercepted exception, not yet delivered. `address` is the faulting linear address of a page fault.

    RIP is at the instruction that faults (INT3 and INTO included), behind one that traps. CR2 is as before; DR6 has the
    bits of the new #DB. `vectoring` is the event whose delivery raised the exception, if any: it was not delivered.
    """

    __slots__ = ("address", "error_code", "vector", "vectoring")
    name = "exception"

    def __init__(self, vector: int, error_code: int | None, address: int, vectoring: Event | None) -> None:
        self.vector = vector
        self.error_code = error_code
        self.address = address
        self.vectoring = vectoring


class Shutdown(Exit):
    """Triple fault."""

    __slots__ = ()
    name = "shutdown"


class InternalError(Exit):
    """The engine cannot execute the guest's instruction; `reason` says which and why."""

    __slots__ = ("reason",)
    name = "internal_error"

    def __init__(self, reason: str) -> None:
        self.reason = reason


def instructions_in(ticks: int, cycles: tuple[int, int]) -> int:
    """How many instructions of so many TSC cycles each (a fraction) take at least `ticks`."""
    return -(-ticks * cycles[1] // cycles[0])
