"""What an engine's processor does by itself, where a real one stands behind it. Part of the contract.

A processor that is emulated asks the hypervisor for all of this, by an exit; a real one answers CPUID and RDTSC without
one, and has to be told beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

PortRead: TypeAlias = Callable[[int, int], int | None]
"""(port, size in bytes) -> the value, or None: let it exit."""
PortWrite: TypeAlias = Callable[[int, int, int], bool]
"""(port, size in bytes, value) -> whether that is all; else it exits."""


class CpuidLeaf(NamedTuple):
    """What CPUID answers for one function, or for one index of it."""

    function: int
    subleaf: int
    eax: int
    ebx: int
    ecx: int
    edx: int
    significant_index: bool


class Processor:
    """The optional part of an engine; by default every such instruction exits."""

    cpuid_exits: ClassVar[bool] = True
    """Whether CPUID leaves the guest."""

    intercepts_instructions: ClassVar[bool] = True
    """Whether `set_intercepts` can be asked for instructions and exceptions; else for those alone that the processor
    and its kernel do as the hypervisor would."""

    def set_cpuid(self, leaves: Sequence[CpuidLeaf]) -> Sequence[CpuidLeaf]:
        """What the guest is to be told; returns what it will be told, which is less where the processor has less.

        Bits that follow other state (OSXSAVE, APIC, OSPKE, the size of the XSAVE area) are the processor's to add.

        Raises:
            EngineError: CPUID is the processor's, and it is too late to change it.
        """
        return leaves

    def set_tsc(self, value: int) -> None:
        """The guest's time-stamp counter is `value` now, where RDTSC does not exit."""

    def read_tsc(self) -> int | None:
        """What RDTSC reads in the guest now, where it does not exit and the engine can tell. From any task."""
        return None

    def share_task_priority(self, get: Callable[[], int], put: Callable[[int], None]) -> None:
        """Where MOV CR8 does not exit: take CR8 (4 bits) from `get` at each entry, give what the guest has made of it
        to `put` at the exit."""

    def answer_ports(self, read: PortRead, write: PortWrite) -> None:
        """Ask these, from inside `run`, before an access to a port exits. An engine may do without: where leaving the
        guest and coming back costs little, or where an exit is wanted for other reasons (string instructions).

        What they make the guest leave for has to be a kick."""

    def set_apic_base(self, value: int) -> None:
        """IA32_APIC_BASE has changed: a processor that answers CPUID itself says whether there is an APIC."""


def own_tsc_khz(factory: object) -> int | None:
    """The frequency at which the time-stamp counters of a factory's engines run, if they run by themselves."""
    found = getattr(factory, "tsc_khz", None)
    assert found is None or isinstance(found, int)
    return found
