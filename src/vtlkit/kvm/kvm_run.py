"""Why `Vcpu.run` returned: one class per exit reason, in KVM's names (`struct kvm_run`, KVM_EXIT_* in linux/kvm.h).

An exit that asks user space for something has a field for the answer; user space fills it before it calls `run` again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from vtlkit.engine.api import Access


class SystemEvent(enum.IntEnum):
    """KVM_SYSTEM_EVENT_*."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4


class KvmRun:
    """An exit to user space. `reason` is the name under which it is counted and traced."""

    __slots__ = ()
    reason: ClassVar[str]


@dataclass(slots=True)
class Io(KvmRun):
    """KVM_EXIT_IO: one element of IN or OUT. For IN, user space puts what it read into `data`."""

    reason: ClassVar[str] = "IO"
    port: int
    size: int
    write: bool
    data: int = 0


@dataclass(slots=True)
class Mmio(KvmRun):
    """KVM_EXIT_MMIO. For a load, user space puts what it read into `data`."""

    reason: ClassVar[str] = "MMIO"
    gpa: int
    size: int
    write: bool
    data: int = 0


@dataclass(slots=True)
class Hyperv(KvmRun):
    """KVM_EXIT_HYPERV, type HCALL: a hypercall that user space owns.

    `control` is the hypercall input value (TLFS, "Hypercall Inputs"). Memory-based: `input_gpa` and `output_gpa`; fast:
    the same two are the register parameters, and `xmm` holds XMM0..XMM5 (96 bytes) if the caller used them.
    User space puts the hypercall result value into `result`; with `complete` False the registers are left alone (a VTL
    switch has no result), with `retry` True the instruction is executed again. `block`, for VTL call and return: what
    completes the hypercall then blocks, and `run` returns SYSTEM_EVENT/WAKEUP when a wake event is pending, by the
    rules of an inactive VTL. The hypervisor clears it with that exit; user space may clear it instead, while the vCPU
    is out of `run`, and the next `run` enters the guest.
    """

    reason: ClassVar[str] = "HYPERV"
    code: int
    control: int
    input_gpa: int
    output_gpa: int
    fast: bool
    xmm: bytes = b""
    length: int = 0
    """Length in bytes of the hypercall instruction, RIP being at it."""
    result: int = 0
    complete: bool = True
    retry: bool = False
    block: bool = False


@dataclass(slots=True)
class MemoryFault(KvmRun):
    """KVM_EXIT_MEMORY_FAULT: an access that memory attributes forbid. RIP is at the instruction.

    Running the vCPU again executes the instruction again. `gva` is None where the engine does not know it.
    `instruction` holds up to 16 bytes at RIP, `instruction_length` the decoded length (0 if they do not decode).
    """

    reason: ClassVar[str] = "MEMORY_FAULT"
    gpa: int
    size: int
    access: Access
    gva: int | None
    instruction: bytes
    instruction_length: int


@dataclass(slots=True)
class SystemEventExit(KvmRun):
    """KVM_EXIT_SYSTEM_EVENT."""

    reason: ClassVar[str] = "SYSTEM_EVENT"
    type: SystemEvent
    data: tuple[int, ...] = ()


@dataclass(slots=True)
class Intr(KvmRun):
    """KVM_RUN returned EINTR: a signal, a kick by user space, or `immediate_exit`."""

    reason: ClassVar[str] = "INTR"


@dataclass(slots=True)
class IrqWindowOpen(KvmRun):
    """KVM_EXIT_IRQ_WINDOW_OPEN: the vCPU can take what user space asked for (`windows.Windows`)."""

    reason: ClassVar[str] = "IRQ_WINDOW_OPEN"
    interrupt: bool
    nmi: bool
    sints: int
    """A bit per SINT whose message slot has room."""


@dataclass(slots=True)
class Shutdown(KvmRun):
    """KVM_EXIT_SHUTDOWN: triple fault."""

    reason: ClassVar[str] = "SHUTDOWN"


@dataclass(slots=True)
class Rdmsr(KvmRun):
    """KVM_EXIT_X86_RDMSR. User space fills `data`, or sets `error` for #GP."""

    reason: ClassVar[str] = "X86_RDMSR"
    index: int
    data: int = 0
    error: bool = False


@dataclass(slots=True)
class Wrmsr(KvmRun):
    """KVM_EXIT_X86_WRMSR. User space sets `error` for #GP."""

    reason: ClassVar[str] = "X86_WRMSR"
    index: int
    data: int
    error: bool = False


@dataclass(slots=True)
class Debug(KvmRun):
    """KVM_EXIT_DEBUG: an intercepted exception."""

    reason: ClassVar[str] = "DEBUG"
    vector: int
    error_code: int | None
    address: int


@dataclass(slots=True)
class Intercepted(KvmRun):
    """What user space has asked for with `Vcpu.set_user_intercepts`.

    Those with a `length` (bytes of the instruction, 0 if unknown): RIP is at the instruction, which has not begun.
    Running the vCPU again executes it again, unless user space has changed RIP or queued an exception. The others are
    traps: the instruction is over.
    """

    reason: ClassVar[str] = "INTERCEPTED"


@dataclass(slots=True)
class InterceptedIo(Intercepted):
    """IN, OUT, INS, OUTS; of a repeated one, the element whose turn it is. `instruction`: up to 16 bytes at RIP."""

    length: int
    port: int
    size: int
    write: bool
    string: bool = False
    rep: bool = False
    instruction: bytes = b""


@dataclass(slots=True)
class InterceptedMsr(Intercepted):
    """RDMSR or WRMSR, whether or not there is such a register. `value`: what WRMSR would write."""

    length: int
    index: int
    write: bool
    value: int = 0


@dataclass(slots=True)
class InterceptedCpuid(Intercepted):
    """CPUID. `default`: EAX, EBX, ECX, EDX as it would answer."""

    length: int
    function: int
    index: int
    default: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(slots=True)
class InterceptedException(Intercepted):
    """An exception, not delivered. RIP as for its delivery, but at INT3 and INTO.

    `parameter`: the linear address of a page fault, which CR2 does not have yet; why #DB came, in DR6's bits.
    `software`: INT3 or INTO. `instruction`: up to 16 bytes at RIP.
    """

    length: int
    vector: int
    error_code: int | None
    parameter: int = 0
    software: bool = False
    instruction: bytes = b""


@dataclass(slots=True)
class InterceptedRegister(Intercepted):
    """A write of `register`: cr0, cr4, xcr0, gdtr, idtr, ldtr, tr.

    `value`: what would be written, the selector for the last two; with an operand in memory 0, and `address` is that
    operand's linear address.
    """

    length: int
    register: str
    value: int
    address: int | None = None


@dataclass(slots=True)
class InterceptedHypercall(Intercepted):
    """A hypercall that nobody has looked at yet; its parameters are in the registers."""

    length: int


@dataclass(slots=True)
class InterceptedEoi(Intercepted):
    """Trap: the guest ended the interrupt `vector` at its local APIC."""

    vector: int


@dataclass(slots=True)
class InterceptedApicWrite(Intercepted):
    """Trap: the guest wrote `value` to the local APIC's register at `offset`."""

    offset: int
    value: int


@dataclass(slots=True)
class InterceptedStartup(Intercepted):
    """Trap: the guest sent an INIT or a SIPI, which was not delivered. ICR as in x2APIC mode."""

    icr: int


@dataclass(slots=True)
class InternalErrorExit(KvmRun):
    """KVM_EXIT_INTERNAL_ERROR: the hypervisor cannot go on with this guest; `message` says why."""

    reason: ClassVar[str] = "INTERNAL_ERROR"
    message: str
