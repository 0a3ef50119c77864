"""What the hypervisor asks of a CPU: run guest instructions of one vCPU until the next exit.

Counterpart: the hardware below KVM (VMRUN and the VMCB on AMD, VM-entry and the VMCS on Intel). An engine knows
instructions, registers, the guest's page tables and event delivery through its IDT. It knows no interrupt controller,
no hypercall and no policy. `engine.unicorn`, `engine.devkvm` and `engine.scripted` implement it; all pass the suite in
`vtlkit.testing`.

An engine belongs to one vCPU. Only the task that runs the vCPU calls it, with one exception: `kick` may be called by
any task at any time.
"""

from __future__ import annotations

import enum
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from vtlkit.x86.registers import Sregs

PAGE_SIZE = 4096


class EngineError(Exception):
    """The engine cannot be used here, or its internals are not what this adapter was written for."""


class Access(enum.IntFlag):
    """Kinds of access to guest-physical memory; also what a mapping permits."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4
    ALL = 7


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


class RegisterFile(Protocol):
    """The live general registers of a stopped vCPU; 64-bit unsigned integers, read and written in place."""

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int


class Intercept(enum.Flag):
    """Instructions that exit besides those that always do (CPUID, HLT, VMMCALL, I/O, intercepted MSRs)."""

    NONE = 0
    PAUSE = enum.auto()
    RDTSC = enum.auto()
    INVLPG = enum.auto()
    CR_READ = enum.auto()
    CR_WRITE = enum.auto()
    DR_READ = enum.auto()
    DR_WRITE = enum.auto()
    DESCRIPTOR_TABLE_READ = enum.auto()
    DESCRIPTOR_TABLE_WRITE = enum.auto()
    XSETBV = enum.auto()
    IRET = enum.auto()
    RDPMC = enum.auto()


class Exit:
    """Why `Engine.run` returned. One subclass per reason; instances are values and are not changed."""

    __slots__ = ()
    name: ClassVar[str] = "exit"
    fault_like: ClassVar[bool] = True
    """True if RIP is at the exiting instruction (the hypervisor skips it); False if the engine finishes it on re-entry."""


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
    """Any other intercepted instruction: `mnemonic` in lower case (`invlpg`, `vmrun`, `sgdt`, `rdpmc`, `xsetbv`, ...)."""

    __slots__ = ("mnemonic",)
    name = "instruction"

    def __init__(self, length: int, mnemonic: str) -> None:
        super().__init__(length)
        self.mnemonic = mnemonic


class ControlRegister(Instruction):
    """MOV to or from a control or debug register: CR number 0..8, or 16 + DR number. `gpr` is the general register's number."""

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


class MmioRead(Exit):
    """A load from a range mapped with `map_exit`. The engine finishes the instruction with the value given to `complete`."""

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
    """An intercepted exception, not yet delivered. `address` is the faulting linear address of a page fault."""

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


class RamBlock:
    """Host memory that backs guest RAM: one anonymous shared mapping, zeroed, page aligned, used by every engine of a machine."""

    __slots__ = ("address", "mapping", "size", "view")

    def __init__(self, size: int) -> None:
        import ctypes

        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"RAM block size {size:#x} is not a positive multiple of {PAGE_SIZE}")
        self.size = size
        self.mapping = mmap.mmap(-1, size)
        self.view = memoryview(self.mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.mapping))

    def zero(self, offset: int, size: int) -> None:
        """Zero whole pages; where the system can, by giving them back to it."""
        try:
            self.mapping.madvise(mmap.MADV_REMOVE, offset, size)
        except (AttributeError, OSError):
            for at in range(offset, offset + size, PAGE_SIZE):
                self.view[at : at + PAGE_SIZE] = bytes(PAGE_SIZE)


MmioRead8 = Callable[[int, int], int]
"""(offset, size in bytes) -> value"""
MmioWrite8 = Callable[[int, int, int], None]
"""(offset, size in bytes, value)"""


class Engine(ABC):
    """One CPU. Register and memory calls are for a stopped vCPU: between two calls of `run`."""

    regs: RegisterFile
    hypercall_instruction: ClassVar[bytes]
    """What the hypercall page holds to make this engine exit with `Hypercall`."""

    # --- execution ------------------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        """Deliver the injected event if any, then execute until the next exit.

        `budget`: at most so many instructions from here on, exactly where the engine counts; None: what is left of the
        last budget given. An engine that does not count ignores it and runs until something exits.
        `force_immediate_exit`: exit before the first new instruction, after delivery of the injected event and after
        an unfinished I/O instruction has been finished.
        """

    @abstractmethod
    def kick(self) -> None:
        """Make the current or next `run` return `Interrupted` soon. From any task; sticky until one `run` has returned."""

    @abstractmethod
    def instructions(self) -> int | None:
        """Instructions executed since the engine was made, the one that exited included; None if this engine does not count."""

    @abstractmethod
    def complete(self, value: int) -> None:
        """Answer the last `PortIn` or `MmioRead`; the instruction is finished by the next `run`."""

    @property
    @abstractmethod
    def at_boundary(self) -> bool:
        """False while an I/O instruction is unfinished: then registers may be read, not written, and nothing injected."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget an unfinished I/O instruction (reset, INIT): the registers are about to be replaced."""

    @abstractmethod
    def skip(self, length: int) -> None:
        """Move RIP past an instruction of `length` bytes, drop the interrupt shadow, honour RFLAGS.TF (#DB is injected)."""

    @abstractmethod
    def code_bits(self) -> int:
        """16, 32 or 64: the size of the code that RIP is in."""

    @abstractmethod
    def instruction_bytes(self, size: int = 16) -> bytes:
        """Up to `size` bytes at RIP, fewer where they cannot be fetched."""

    @abstractmethod
    def instruction_length(self, code: bytes) -> int:
        """Length in bytes of the instruction that `code` starts with in the present mode; 0 if it does not decode."""

    @abstractmethod
    def store_operand(self, value: int, size: int) -> Event | None:
        """Store to the first operand of the instruction at RIP: `size` bytes if it is memory, zero-extended if a register.

        Returns the exception that the store raises, if any; it has had no other effect then.
        """

    @abstractmethod
    def load_operand16(self) -> int | Event:
        """The low 16 bits of the first operand of the instruction at RIP, or the exception that the load raises."""

    # --- events ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def inject(self, event: Event) -> None:
        """Deliver `event` first thing in the next `run`. Only one may be injected; a second is an assertion."""

    @abstractmethod
    def injected(self) -> Event | None:
        """The event injected and not delivered yet."""

    @abstractmethod
    def cancel_injection(self) -> Event | None:
        """Take back the injected event."""

    @abstractmethod
    def request_interrupt_window(self, wanted: bool) -> None:
        """Exit with `InterruptWindow` as soon as RFLAGS.IF is set and there is no interrupt shadow (and GIF is set)."""

    @abstractmethod
    def request_nmi_window(self, wanted: bool) -> None:
        """Exit with `NmiWindow` as soon as NMIs are not blocked and there is no interrupt shadow."""

    interrupt_shadow: bool
    """The STI / MOV SS shadow covers the next instruction."""
    nmi_blocked: bool
    """An NMI has been delivered and no IRET executed since."""

    @abstractmethod
    def set_intercepts(self, intercepts: Intercept, exceptions: int = 0) -> None:
        """Which optional instructions exit, and (bit per vector) which exceptions exit instead of being delivered."""

    @abstractmethod
    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        """Whether RDMSR/WRMSR of `index` exits. All do at first, but for those the engine keeps itself (`native_msrs`)."""

    # --- registers ------------------------------------------------------------------------------------------------

    rflags: int

    @abstractmethod
    def get_sregs(self) -> Sregs: ...

    @abstractmethod
    def set_sregs(self, sregs: Sregs) -> None:
        """Replace the system registers and flush what depends on them."""

    @property
    @abstractmethod
    def cpl(self) -> int: ...

    @property
    @abstractmethod
    def cr0(self) -> int:
        """CR0, without the cost of all system registers; so `cr4`."""

    @property
    @abstractmethod
    def cr4(self) -> int: ...

    native_msrs: ClassVar[frozenset[int]]
    """MSRs that live in the engine: EFER, FS/GS/KernelGS base, STAR, LSTAR, CSTAR, SFMASK, SYSENTER_*, PAT, TSC_AUX."""

    @abstractmethod
    def get_msr(self, index: int) -> int:
        """A native MSR."""

    @abstractmethod
    def set_msr(self, index: int, value: int) -> None: ...

    @abstractmethod
    def get_fpu(self) -> bytes:
        """x87, SSE (and what lies beyond) as the 512-byte FXSAVE64 image (Intel SDM volume 1, table 10-2)."""

    @abstractmethod
    def set_fpu(self, image: bytes) -> None: ...

    @abstractmethod
    def get_debugregs(self) -> tuple[int, int, int, int, int, int]:
        """DR0..DR3, DR6, DR7."""

    @abstractmethod
    def set_debugregs(self, values: tuple[int, int, int, int, int, int]) -> None: ...

    xcr0: int

    @abstractmethod
    def copy_shared_state(self, source: Engine) -> None:
        """Take from `source` (an engine of the same kind) what all VTLs of a VP share: RAX..R15 but RSP, CR2, DR0..DR3,
        x87/SSE/AVX state and XCR0 (TLFS, "Virtual Processor State", shared registers)."""

    # --- memory ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def map_ram(self, gpa: int, size: int, block: RamBlock, offset: int, access: Access) -> None:
        """Back [gpa, gpa + size) by `block` from `offset`. Pages; the range must be free."""

    @abstractmethod
    def map_exit(self, gpa: int, size: int) -> None:
        """Loads and stores in the range exit with `MmioRead` / `MmioWrite`; the range must be free."""

    @abstractmethod
    def map_device(self, gpa: int, size: int, read: MmioRead8, write: MmioWrite8) -> None:
        """Loads and stores in the range call back from inside `run`, without an exit; the range must be free."""

    @abstractmethod
    def unmap(self, gpa: int, size: int) -> None:
        """Free the range (whatever backs it); later accesses exit with `MemoryFault`, mapped False."""

    @abstractmethod
    def protect(self, gpa: int, size: int, access: Access) -> None:
        """Change what RAM in the range permits; other accesses exit with `MemoryFault`, mapped True."""

    @abstractmethod
    def memory_written(self, gpa: int, size: int) -> None:
        """The host changed RAM behind the CPU's back: forget translated code from there."""

    @abstractmethod
    def flush_tlb(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds. Nothing may be called after."""


class EngineFactory(Protocol):
    """Makes the engines of one machine: they share RAM blocks and see each other's writes to code."""

    name: str

    def create(self, vcpu_name: str) -> Engine: ...

    def counts_instructions(self) -> bool: ...

    def close(self) -> None: ...
