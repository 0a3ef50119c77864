"""CPUID: what the guest is told. Mirrors arch/x86/kvm/cpuid.c.

User space sets a table with `set_cpuid2`, usually starting from `supported`; bits that follow other state (OSXSAVE,
APIC, OSPKE, the size of the XSAVE area) are computed when the guest asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtlkit.x86 import cpuid as bits
from vtlkit.x86.msr import APICBASE_ENABLE
from vtlkit.x86.registers import CR4_OSXSAVE, CR4_PKE, XCR0_PKRU, XCR0_SSE, XCR0_X87

if TYPE_CHECKING:
    from vtlkit.kvm.user_intercepts import CpuidOverride
    from vtlkit.kvm.vcpu import Vcpu

_BASIC_MAX = 0x16
_EXTENDED_MAX = 0x80000008
_EXTENDED_MAX_SVM = 0x8000000A
_SVM_REVISION = 1
_SVM_ASIDS = 8
_SIGNATURE = 0x00800F12
"""Family 17h model 1 stepping 2: an AMD processor, as the SVM vendor code is for."""
_XSAVE_LEGACY_AREA = 576
_XSAVE_PKRU = 9
_XSAVE_COMPONENTS = {_XSAVE_PKRU: (2688, 8)}
"""Offset and size of the components behind the legacy area and the header, in the standard format."""
_SUPPORTED_XCR0 = XCR0_X87 | XCR0_SSE | XCR0_PKRU
_LINEAR_BITS = 48
_LINEAR_BITS_LA57 = 57
_VENDOR = b"AuthenticAMD"
_BRAND = b"vtlkit embedded processor".ljust(48, b"\0")
_FEATURE_ECX = (
    bits.SOFTWARE_1_ECX | bits.CPUID_1_ECX_X2APIC | bits.CPUID_1_ECX_TSC_DEADLINE | bits.CPUID_1_ECX_HYPERVISOR
)
_STRUCTURED_EBX = bits.SOFTWARE_7_0_EBX | bits.CPUID_7_0_EBX_TSC_ADJUST
_STRUCTURED_ECX = bits.SOFTWARE_7_0_ECX | bits.CPUID_7_0_ECX_UMIP


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """`struct kvm_cpuid_entry2`."""

    function: int
    index: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
    significant_index: bool = False


DEFAULT_MAXPHYADDR = 36
"""Physical address bits of a processor that does not tell them."""
DYNAMIC_LEAVES = frozenset({1, 7, 0xD, 0x80000001, 0x80000007})
"""Leaves of which bits follow other state."""


class CpuidTable:
    """One vCPU's table, found by function and index. Replaced as a whole; belongs to the vCPU's task."""

    __slots__ = ("_by_function", "_indexed", "entries", "max_basic", "max_extended", "max_hypervisor", "plain")

    def __init__(self, entries: Iterable[CpuidEntry] = ()) -> None:
        self.entries = tuple(entries)
        self._by_function: dict[int, CpuidEntry] = {}
        self._indexed: dict[int, dict[int, CpuidEntry]] = {}
        for entry in self.entries:
            if entry.significant_index:
                self._indexed.setdefault(entry.function, {})[entry.index] = entry
            else:
                self._by_function[entry.function] = entry
        self.plain = {
            entry.function: (entry.eax, entry.ebx, entry.ecx, entry.edx) for entry in self._by_function.values()
        }
        """Leaves without subleaves, ready for the registers; DYNAMIC_LEAVES must still be computed."""
        self.max_basic = self._limit(0)
        self.max_extended = self._limit(0x80000000)
        self.max_hypervisor = self._limit(0x40000000)

    def _limit(self, function: int) -> int:
        entry = self._by_function.get(function)
        return entry.eax if entry else 0

    def find(self, function: int, index: int = 0) -> CpuidEntry | None:
        """The entry for EAX = function, ECX = index; None reads as zeros (AMD's answer to an unknown leaf)."""
        entry = self._by_function.get(function)
        if entry is not None:
            return entry
        indexed = self._indexed.get(function)
        return indexed.get(index) if indexed else None

    def maxphyaddr(self) -> int:
        """Width of a guest-physical address, in bits."""
        widths = self.find(0x80000008)
        return DEFAULT_MAXPHYADDR if widths is None else widths.eax & bits.CPUID_80000008_EAX_PHYSICAL_BITS

    def has(self, function: int, register: str, bit: int) -> bool:
        """Whether a feature bit is offered."""
        entry = self.find(function)
        return entry is not None and bool(getattr(entry, register) & bit)


def _xsave_size(components: int) -> int:
    """Bytes of an XSAVE area in the standard format (`xstate_required_size`)."""
    end = _XSAVE_LEGACY_AREA
    for number, (offset, size) in _XSAVE_COMPONENTS.items():
        if components >> number & 1:
            end = max(end, offset + size)
    return end


def supported(tsc_khz: int, maxphyaddr: int, *, nested: bool = False) -> list[CpuidEntry]:
    """KVM_GET_SUPPORTED_CPUID: what this hypervisor and its engines can do, for vCPU 0. `nested`: with SVM."""
    return [*_basic_leaves(tsc_khz // 1000), *_extended_leaves(maxphyaddr, nested)]


def _basic_leaves(mhz: int) -> list[CpuidEntry]:
    return [
        _vendor(0, _BASIC_MAX),
        CpuidEntry(1, 0, _SIGNATURE, 8 << bits.CPUID_1_EBX_CLFLUSH_SHIFT, _FEATURE_ECX, bits.SOFTWARE_1_EDX),
        CpuidEntry(6, 0, bits.CPUID_6_EAX_ARAT),
        CpuidEntry(7, 0, 0, _STRUCTURED_EBX, _STRUCTURED_ECX, 0, True),
        CpuidEntry(0xD, 0, _SUPPORTED_XCR0, _XSAVE_LEGACY_AREA, _xsave_size(_SUPPORTED_XCR0), 0, True),
        CpuidEntry(0xD, 1, bits.SOFTWARE_D_1_EAX, 0, 0, 0, True),
        *(CpuidEntry(0xD, number, size, offset, 0, 0, True) for number, (offset, size) in _XSAVE_COMPONENTS.items()),
        # Frequencies in MHz: base, maximum, bus.
        CpuidEntry(0x16, 0, mhz, mhz, 1000),
    ]


def _extended_leaves(maxphyaddr: int, nested: bool) -> list[CpuidEntry]:
    linear = _LINEAR_BITS_LA57 if _STRUCTURED_ECX & bits.CPUID_7_0_ECX_LA57 else _LINEAR_BITS
    ecx = bits.SOFTWARE_80000001_ECX | (bits.CPUID_80000001_ECX_SVM if nested else 0)
    svm = [CpuidEntry(0x8000000A, 0, _SVM_REVISION, _SVM_ASIDS, 0, bits.CPUID_8000000A_EDX_NRIP_SAVE)]
    return [
        _vendor(0x80000000, _EXTENDED_MAX_SVM if nested else _EXTENDED_MAX),
        CpuidEntry(0x80000001, 0, _SIGNATURE, 0, ecx, bits.SOFTWARE_80000001_EDX),
        *(
            CpuidEntry(0x80000002 + at, 0, *registers)
            for at, registers in enumerate(struct.iter_unpack("<IIII", _BRAND))
        ),
        CpuidEntry(0x80000007, 0, 0, 0, 0, bits.CPUID_80000007_EDX_INVARIANT_TSC),
        CpuidEntry(0x80000008, 0, maxphyaddr | linear << bits.CPUID_80000008_EAX_LINEAR_BITS_SHIFT, 0, 0, 0),
        *(svm if nested else ()),
    ]


def _vendor(function: int, highest: int) -> CpuidEntry:
    ebx, edx, ecx = struct.unpack("<III", _VENDOR)
    return CpuidEntry(function, 0, highest, ebx, ecx, edx)


def for_vcpu(entries: Iterable[CpuidEntry], apic_id: int, vcpus: int) -> list[CpuidEntry]:
    """`entries` for one of `vcpus` processors of one package: initial APIC ID, counts, extended topology."""
    width = max(vcpus - 1, 0).bit_length()
    result = []
    for entry in entries:
        if entry.function == 1:
            ebx = (entry.ebx & 0xFFFF) | min(vcpus, 255) << bits.CPUID_1_EBX_LOGICAL_PROCESSORS_SHIFT
            ebx |= (apic_id & 0xFF) << bits.CPUID_1_EBX_INITIAL_APIC_ID_SHIFT
            edx = entry.edx | (bits.CPUID_1_EDX_HTT if vcpus > 1 else 0)
            entry = CpuidEntry(1, 0, entry.eax, ebx, entry.ecx, edx)
        elif entry.function == 0x80000008:
            entry = CpuidEntry(0x80000008, 0, entry.eax, entry.ebx, width << 12 | max(vcpus - 1, 0), 0)
        result.append(entry)
    smt = bits.CPUID_B_LEVEL_SMT << bits.CPUID_B_ECX_LEVEL_TYPE_SHIFT
    core = bits.CPUID_B_LEVEL_CORE << bits.CPUID_B_ECX_LEVEL_TYPE_SHIFT
    result.append(CpuidEntry(0xB, 0, 0, 1, smt, apic_id, True))
    result.append(CpuidEntry(0xB, 1, width, vcpus, 1 | core, apic_id, True))
    result.append(CpuidEntry(0xB, 2, 0, 0, 2, apic_id, True))
    return result


def for_guest(vcpu: Vcpu, function: int, index: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX as the guest's CPUID returns them now, with what user space has registered for the leaf."""
    wanted = vcpu.user_intercepts
    override = None if wanted is None else wanted.override(function, index)
    apic_enabled = bool(vcpu.apic.get_base() & APICBASE_ENABLE)
    hide = vcpu.hv.hides_invariant_tsc
    cr4, xcr0 = vcpu.engine.cr4, vcpu.engine.xcr0
    return answer(vcpu.cpuid, function, index, cr4, xcr0, apic_enabled, override, hide_invariant_tsc=hide)


def answer(
    table: CpuidTable,
    function: int,
    index: int,
    cr4: int,
    xcr0: int,
    apic_enabled: bool,
    override: CpuidOverride | None = None,
    *,
    hide_invariant_tsc: bool = False,
) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX as the CPUID instruction returns them (`kvm_cpuid`)."""
    entry = table.find(function, index)
    if entry is not None:
        registers = entry.eax, entry.ebx, entry.ecx, entry.edx
    elif function == 0xB and (first := table.find(0xB, 0)) is not None:
        # Any subleaf of the topology leaf reports the x2APIC ID and echoes its number.
        registers = 0, 0, index & 0xFF, first.edx
    else:
        registers = 0, 0, 0, 0
    if hide_invariant_tsc and function == 0x80000007:
        registers = (*registers[:3], registers[3] & ~bits.CPUID_80000007_EDX_INVARIANT_TSC)
    if override is not None:
        registers = override.apply(registers)
    if entry is not None:
        registers = _with_state(registers, function, index, cr4, xcr0, apic_enabled)
    return override.apply(registers) if override is not None and override.always else registers


def _with_state(
    registers: tuple[int, int, int, int], function: int, index: int, cr4: int, xcr0: int, apic_enabled: bool
) -> tuple[int, int, int, int]:
    """With the bits that follow other state."""
    eax, ebx, ecx, edx = registers
    if function == 1:
        if cr4 & CR4_OSXSAVE:
            ecx |= bits.CPUID_1_ECX_OSXSAVE
        if not apic_enabled:
            edx &= ~bits.CPUID_1_EDX_APIC
    elif function == 7 and cr4 & CR4_PKE:
        ecx |= bits.CPUID_7_0_ECX_OSPKE
    elif function == 0xD and index == 0:
        ebx = _xsave_size(xcr0)
    elif function == 0x80000001 and not apic_enabled:
        edx &= ~bits.CPUID_1_EDX_APIC
    return eax, ebx, ecx, edx
