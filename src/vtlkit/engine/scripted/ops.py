"""What a scripted guest does: one value per instruction, yielded by its generator.

The guest is an accumulator machine: a load, an IN and a host action leave their result in RAX, a store and an OUT
without a value of their own take RAX. `yield` gives the generator RAX as it is after the instruction, whoever set it:
the guest, or the hypervisor that emulated an instruction that exited. Every instruction is one byte long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Set:
    """register := value. `register` is an attribute of `Engine.regs`."""

    value: int
    register: str = "rax"


@dataclass(frozen=True, slots=True)
class Read:
    """RAX := memory."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class Write:
    """memory := value, or RAX."""

    gpa: int
    size: int
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Add:
    """memory += RAX: a load and a store in one instruction, two exits where memory is an exit range."""

    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class In:
    """RAX := port."""

    port: int
    size: int


@dataclass(frozen=True, slots=True)
class Out:
    """port := value, or RAX."""

    port: int
    size: int
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """RAX := action(): on words that the host shares between tasks (its cells), atomic or blocking as those are."""

    action: Callable[[], int | None]


@dataclass(frozen=True, slots=True)
class Cpuid:
    """Exits."""


@dataclass(frozen=True, slots=True)
class Hlt:
    """Exits."""


@dataclass(frozen=True, slots=True)
class Vmmcall:
    """Exits with `Hypercall`."""


@dataclass(frozen=True, slots=True)
class Rdmsr:
    """Exits if MSR RCX is intercepted, else RAX := it. The high half is not split off to RDX."""


@dataclass(frozen=True, slots=True)
class Wrmsr:
    """Exits if MSR RCX is intercepted, else it := RAX. The high half is not taken from RDX."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Exits if intercepted."""


@dataclass(frozen=True, slots=True)
class Rdtsc:
    """Exits if intercepted, else reads zero: there is no time."""


@dataclass(frozen=True, slots=True)
class MovFromCr:
    """RAX := control register 0, 2, 3, 4 or 8; exits if intercepted (CR8 always)."""

    number: int


@dataclass(frozen=True, slots=True)
class MovToCr:
    """Control register := RAX; exits if intercepted (CR8 always)."""

    number: int


@dataclass(frozen=True, slots=True)
class Intercepted:
    """An instruction that exits as `Other` with this mnemonic: always, or (LGDT, LIDT, LLDT, LTR) if intercepted.

    The operand of LGDT and LIDT lies at address RAX, that of the others is RAX.
    """

    mnemonic: str


@dataclass(frozen=True, slots=True)
class Compute:
    """So many instructions that touch nothing outside the processor."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Sti:
    """RFLAGS.IF := 1; if it was 0, interrupts are held off for one more instruction."""


@dataclass(frozen=True, slots=True)
class Cli:
    """RFLAGS.IF := 0."""


@dataclass(frozen=True, slots=True)
class MovSs:
    """Interrupts are held off for one more instruction."""


@dataclass(frozen=True, slots=True)
class Int:
    """A software interrupt."""

    vector: int


@dataclass(frozen=True, slots=True)
class Fault:
    """An instruction that raises an exception; when its handler returns it is executed again unless `trap`."""

    vector: int
    error_code: int | None = None
    trap: bool = False


Op: TypeAlias = (
    Set
    | Read
    | Write
    | Add
    | In
    | Out
    | Host
    | Cpuid
    | Hlt
    | Vmmcall
    | Rdmsr
    | Wrmsr
    | Pause
    | Rdtsc
    | MovFromCr
    | MovToCr
    | Intercepted
    | Compute
    | Sti
    | Cli
    | MovSs
    | Int
    | Fault
)
