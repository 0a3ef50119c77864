"""What the hypervisor asks of a CPU: run guest instructions of one vCPU until the next exit.

Counterpart: the hardware below KVM (VMRUN and the VMCB on AMD, VM-entry and the VMCS on Intel). An engine knows
instructions, registers, the guest's page tables and event delivery through its IDT. It knows no interrupt controller,
no hypercall and no policy. `engine.unicorn`, `engine.devkvm` and `engine.scripted` implement it; all pass the suite in
`vtlkit.testing`.

An engine belongs to one vCPU. Only the task that runs the vCPU calls it, with one exception: `kick` may be called by
any task at any time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Protocol

from vtlkit.engine.exits import (
    ControlRegister,
    Cpuid,
    Event,
    EventType,
    ExceptionExit,
    Exit,
    Hlt,
    Hypercall,
    Instruction,
    InternalError,
    Interrupted,
    InterruptWindow,
    MemoryFault,
    MmioRead,
    MmioWrite,
    NmiWindow,
    Other,
    Pause,
    PortIn,
    PortIntercept,
    PortOut,
    PreemptionTimer,
    Rdmsr,
    Rdtsc,
    Shutdown,
    Wrmsr,
    instructions_in,
)
from vtlkit.engine.intercepts import (
    NO_REGISTERS,
    PORT_BITMAP_SIZE,
    Intercept,
    PortBitmap,
    RegisterIntercepts,
    touches_port,
)
from vtlkit.engine.processor import CpuidLeaf, Processor, own_tsc_khz
from vtlkit.engine.ram import PAGE_SIZE, Access, RamBlock
from vtlkit.x86.registers import RFLAGS_IF, Sregs

__all__ = [
    "NO_REGISTERS",
    "PAGE_SIZE",
    "PORT_BITMAP_SIZE",
    "Access",
    "ControlRegister",
    "Cpuid",
    "CpuidLeaf",
    "Engine",
    "EngineError",
    "EngineFactory",
    "Event",
    "EventType",
    "ExceptionExit",
    "Exit",
    "Hlt",
    "Hypercall",
    "Instruction",
    "Intercept",
    "InternalError",
    "InterruptWindow",
    "Interrupted",
    "MemoryFault",
    "MmioRead",
    "MmioRead8",
    "MmioWrite",
    "MmioWrite8",
    "NmiWindow",
    "Other",
    "Pause",
    "PortBitmap",
    "PortIn",
    "PortIntercept",
    "PortOut",
    "PreemptionTimer",
    "RamBlock",
    "Rdmsr",
    "Rdtsc",
    "RegisterFile",
    "RegisterIntercepts",
    "Shutdown",
    "Sregs",
    "Wrmsr",
    "instructions_in",
    "own_tsc_khz",
    "touches_port",
]


class EngineError(Exception):
    """The engine cannot be used here, or its internals are not what this adapter was written for."""


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


MmioRead8 = Callable[[int, int], int]
"""(offset, size in bytes) -> value"""
MmioWrite8 = Callable[[int, int, int], None]
"""(offset, size in bytes, value)"""


class Engine(Processor, ABC):
    """One CPU. Register and memory calls are for a stopped vCPU: between two calls of `run`."""

    regs: RegisterFile
    hypercall_instruction: ClassVar[bytes]
    """What the hypercall page holds to make this engine exit with `Hypercall`."""

    # --- execution ------------------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        """Deliver the injected event if any (a kick need not wait for that), then execute until the next exit.

        `budget`: at most so many instructions from here on, exactly where the engine counts; None: what is left of the
        last budget given. An engine that does not count ignores it and runs until something exits.
        `force_immediate_exit`: exit before the first new instruction, after delivery of the injected event and after
        an unfinished I/O instruction has been finished.
        """

    @abstractmethod
    def kick(self) -> None:
        """Make the current or next `run` return `Interrupted` soon. From any task; sticky until one `run` returned."""

    instruction_cycles: tuple[int, int] = (1, 1)
    """Guest TSC cycles of one instruction, as a fraction: by this a counting engine runs its preemption timer."""

    @property
    @abstractmethod
    def counts_preemption_timer(self) -> bool:
        """Whether `set_preemption_timer` takes more than zero."""

    @abstractmethod
    def set_preemption_timer(self, ticks: int | None) -> None:
        """Exit with `PreemptionTimer` once the guest has run for so many TSC cycles; None: never.

        It counts in the guest alone, and `run` goes on with what the one before it left, as with VMX's control "save
        VMX-preemption timer value": run down, it stays at zero. Zero is before the first new instruction, after
        delivery of the injected event and the end of an unfinished I/O instruction, and ahead of every window.

        Raises:
            ValueError: more than zero, and `counts_preemption_timer` is False.
        """

    @abstractmethod
    def instructions(self) -> int | None:
        """Instructions executed since the engine was made, the one that exited included; None if it does not count."""

    @abstractmethod
    def complete(self, value: int) -> None:
        """Answer the last `PortIn` or `MmioRead`; the instruction is finished by the next `run`."""

    @property
    @abstractmethod
    def at_boundary(self) -> bool:
        """False while an I/O instruction is unfinished: registers may be read then, not written, nothing injected."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget an unfinished I/O instruction (reset, INIT): the registers are about to be replaced."""

    @abstractmethod
    def skip(self, length: int) -> None:
        """Move RIP past an instruction of `length` bytes, drop the interrupt shadow, honour RFLAGS.TF (inject #DB)."""

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
    def store_operand(self, value: int, size: int) -> Event | MemoryFault | None:
        """Store to the first operand of the instruction at RIP: `size` bytes of memory, or zero-extended a register.

        Returns the exception that the store raises, or the access that the guest-physical map does not permit (a range
        of memory-mapped I/O included: `mapped` is False); the store has had no effect then.
        """

    @abstractmethod
    def load_operand16(self) -> int | Event | MemoryFault:
        """The low 16 bits of the first operand of the instruction at RIP, or why not, as `store_operand` says."""

    @abstractmethod
    def operand_address(self) -> int | None:
        """Linear address of the memory operand of the instruction at RIP, unchecked; None if it has none."""

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
    def set_intercepts(
        self, intercepts: Intercept, exceptions: int = 0, moves: RegisterIntercepts = NO_REGISTERS
    ) -> None:
        """Which optional instructions exit, and (bit per vector) which exceptions exit instead of being delivered.

        Exceptions that guest code or the delivery of an event raises; not injected ones, nor INT n.
        """

    @abstractmethod
    def intercept_msr(self, index: int, read: bool, write: bool) -> None:
        """Whether RDMSR/WRMSR of `index` exits. All do at first, but for reads of `free_msr_reads`."""

    @property
    @abstractmethod
    def intercepts_ports(self) -> bool:
        """Whether `set_port_intercepts` can be used."""

    @abstractmethod
    def set_port_intercepts(self, reads: PortBitmap | None, writes: PortBitmap | None) -> None:
        """IN and OUT that touch a port whose bit is set (None: none) exit with `PortIntercept`.

        What I/O privilege refuses does not.

        Raises:
            ValueError: this engine cannot.
        """

    # --- registers ------------------------------------------------------------------------------------------------

    rflags: int

    @property
    def interrupt_flag(self) -> bool:
        """RFLAGS.IF, without the cost of all flags."""
        return bool(self.rflags & RFLAGS_IF)

    @abstractmethod
    def get_sregs(self) -> Sregs: ...

    @abstractmethod
    def set_sregs(self, sregs: Sregs) -> None:
        """Replace the system registers and flush what depends on them."""

    def set_control_registers(self, cr0: int, cr4: int, efer: int) -> None:
        """As `set_sregs` for these three alone, which engines may do for less."""
        sregs = self.get_sregs()
        sregs.cr0, sregs.cr4, sregs.efer = cr0, cr4, efer
        self.set_sregs(sregs)

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

    free_msr_reads: ClassVar[frozenset[int]]
    """MSRs of which RDMSR does not exit at first."""

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
    pkru: int

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
