"""x86 system registers: control bits and the plain register records (Intel SDM volume 3, chapter 2; AMD APM volume 2).

The records mirror `struct kvm_regs` and `struct kvm_sregs`; segment attributes have the VMCB's 12-bit form. They are
mutable values owned by whoever holds them; nothing here is shared, and nothing here checks what the guest may load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

FXSAVE_XMM0: Final = 160
"""Offset of XMM0 in the FXSAVE image; the next register is 16 bytes on (SDM volume 1, table 10-2)."""

CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_AM: Final = 1 << 18
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
CR0_VALID: Final = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG

CR3_PWT: Final = 1 << 3
CR3_PCD: Final = 1 << 4
CR3_PCID_MASK: Final = 0xFFF
CR3_NOFLUSH: Final = 1 << 63
"""Bit of the operand of MOV to CR3, never of CR3 itself."""

CR4_VME: Final = 1 << 0
CR4_PVI: Final = 1 << 1
CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_PCE: Final = 1 << 8
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_UMIP: Final = 1 << 11
CR4_LA57: Final = 1 << 12
CR4_VMXE: Final = 1 << 13
CR4_SMXE: Final = 1 << 14
CR4_FSGSBASE: Final = 1 << 16
CR4_PCIDE: Final = 1 << 17
CR4_OSXSAVE: Final = 1 << 18
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
CR4_PKE: Final = 1 << 22
CR4_CET: Final = 1 << 23
CR4_PKS: Final = 1 << 24

EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NX: Final = 1 << 11
EFER_SVME: Final = 1 << 12
EFER_LMSLE: Final = 1 << 13
EFER_FFXSR: Final = 1 << 14

RFLAGS_CF: Final = 1 << 0
RFLAGS_FIXED: Final = 1 << 1
RFLAGS_PF: Final = 1 << 2
RFLAGS_AF: Final = 1 << 4
RFLAGS_ZF: Final = 1 << 6
RFLAGS_SF: Final = 1 << 7
RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_DF: Final = 1 << 10
RFLAGS_OF: Final = 1 << 11
RFLAGS_IOPL: Final = 3 << 12
RFLAGS_IOPL_SHIFT: Final = 12
RFLAGS_NT: Final = 1 << 14
RFLAGS_RF: Final = 1 << 16
RFLAGS_VM: Final = 1 << 17
RFLAGS_AC: Final = 1 << 18
RFLAGS_VIF: Final = 1 << 19
RFLAGS_VIP: Final = 1 << 20
RFLAGS_ID: Final = 1 << 21
RFLAGS_VALID: Final = 0x3F7FD7
"""Every bit that a flag or the fixed bit 1 occupies; the others read as zero."""

DR6_B0: Final = 1 << 0
DR6_B1: Final = 1 << 1
DR6_B2: Final = 1 << 2
DR6_B3: Final = 1 << 3
DR6_TRAP_BITS: Final = 0xF
DR6_BUS_LOCK: Final = 1 << 11
"""Active low, as is DR6_RTM: clear means that the condition occurred."""
DR6_BD: Final = 1 << 13
DR6_BS: Final = 1 << 14
DR6_BT: Final = 1 << 15
DR6_RTM: Final = 1 << 16
DR6_FIXED_1: Final = 0xFFFF0FF0
"""Reset value, and the bits that read as one where neither RTM nor bus-lock detection exists."""
DR6_VOLATILE: Final = DR6_TRAP_BITS | DR6_BD | DR6_BS | DR6_BT

DR7_L0: Final = 1 << 0
DR7_G0: Final = 1 << 1
DR7_L1: Final = 1 << 2
DR7_G1: Final = 1 << 3
DR7_L2: Final = 1 << 4
DR7_G2: Final = 1 << 5
DR7_L3: Final = 1 << 6
DR7_G3: Final = 1 << 7
DR7_BP_EN_MASK: Final = 0xFF
DR7_LE: Final = 1 << 8
DR7_GE: Final = 1 << 9
DR7_FIXED_1: Final = 1 << 10
DR7_RTM: Final = 1 << 11
DR7_GD: Final = 1 << 13
DR7_RW_SHIFT: Final = 16
"""R/W field of breakpoint n: 2 bits at DR7_RW_SHIFT + 4 * n; its length: 2 bits at DR7_LEN_SHIFT + 4 * n."""
DR7_LEN_SHIFT: Final = 18
DR7_RW_EXECUTE: Final = 0
DR7_RW_WRITE: Final = 1
DR7_RW_IO: Final = 2
DR7_RW_ACCESS: Final = 3
DR7_VOLATILE: Final = 0xFFFF2BFF

XCR0_X87: Final = 1 << 0
XCR0_SSE: Final = 1 << 1
XCR0_AVX: Final = 1 << 2
XCR0_PKRU: Final = 1 << 9

SEGMENT_TYPE: Final = 0xF
SEGMENT_S: Final = 1 << 4
SEGMENT_DPL_SHIFT: Final = 5
SEGMENT_DPL: Final = 3 << SEGMENT_DPL_SHIFT
SEGMENT_P: Final = 1 << 7
SEGMENT_AVL: Final = 1 << 8
SEGMENT_L: Final = 1 << 9
SEGMENT_DB: Final = 1 << 10
SEGMENT_G: Final = 1 << 11
SEGMENT_ATTRIBUTES: Final = 0xFFF

GENERAL_REGISTERS: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
"""The general registers in the processor's numbering, as fields of `Regs`."""

_APIC_BASE_RESET: Final = 0xFEE00800
_CPUID_SIGNATURE_RESET: Final = 0x600


@dataclass(slots=True)
class Regs:
    """The general registers, RIP and RFLAGS; 64-bit unsigned integers."""

    rax: int = 0
    rcx: int = 0
    rdx: int = 0
    rbx: int = 0
    rsp: int = 0
    rbp: int = 0
    rsi: int = 0
    rdi: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = RFLAGS_FIXED

    @classmethod
    def reset(cls, signature: int = _CPUID_SIGNATURE_RESET) -> Regs:
        """Power-up, RESET and INIT (SDM volume 3, table 10-1): all zero but RIP 0xFFF0 and RDX, the CPUID signature."""
        return cls(rdx=signature, rip=0xFFF0)

    def copy(self) -> Regs:
        return replace(self)


@dataclass(slots=True)
class Segment:
    """A segment register with its hidden part. `limit` is in bytes, granularity expanded.

    `attributes` is the VMCB's form: type 3:0, S 4, DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11.
    """

    selector: int = 0
    base: int = 0
    limit: int = 0
    attributes: int = 0

    @property
    def type(self) -> int:
        return self.attributes & SEGMENT_TYPE

    @property
    def s(self) -> bool:
        """True for code and data, False for system segments."""
        return bool(self.attributes & SEGMENT_S)

    @property
    def dpl(self) -> int:
        return (self.attributes >> SEGMENT_DPL_SHIFT) & 3

    @property
    def present(self) -> bool:
        return bool(self.attributes & SEGMENT_P)

    @property
    def avl(self) -> bool:
        return bool(self.attributes & SEGMENT_AVL)

    @property
    def long(self) -> bool:
        """L: 64-bit code."""
        return bool(self.attributes & SEGMENT_L)

    @property
    def db(self) -> bool:
        return bool(self.attributes & SEGMENT_DB)

    @property
    def granularity(self) -> bool:
        return bool(self.attributes & SEGMENT_G)

    @property
    def unusable(self) -> bool:
        """What VMX keeps in bit 16 of the access rights; SVM has no such bit and calls a segment without P unusable."""
        return not self.attributes & SEGMENT_P

    def copy(self) -> Segment:
        return Segment(self.selector, self.base, self.limit, self.attributes)


@dataclass(slots=True)
class DescriptorTable:
    """GDTR or IDTR. `limit` is the offset of the last valid byte."""

    base: int = 0
    limit: int = 0

    def copy(self) -> DescriptorTable:
        return DescriptorTable(self.base, self.limit)


@dataclass(slots=True)
class Sregs:
    """The system registers of one vCPU (`struct kvm_sregs` without its interrupt bitmap)."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int

    @classmethod
    def reset(cls) -> Sregs:
        """Power-up and RESET (SDM volume 3, table 10-1). The BSP's owner adds APICBASE_BSP; INIT differs as KVM says.

        The task register is a busy 32-bit TSS: the table asks for a present read/write segment, and this type is the
        one that both VM entry and VMRUN accept.
        """

        def data() -> Segment:
            return Segment(0, 0, 0xFFFF, 0x93)

        return cls(
            cs=Segment(0xF000, 0xFFFF0000, 0xFFFF, 0x9B),
            ds=data(),
            es=data(),
            fs=data(),
            gs=data(),
            ss=data(),
            tr=Segment(0, 0, 0xFFFF, 0x8B),
            ldt=Segment(0, 0, 0xFFFF, 0x82),
            gdt=DescriptorTable(0, 0xFFFF),
            idt=DescriptorTable(0, 0xFFFF),
            cr0=CR0_CD | CR0_NW | CR0_ET,
            cr2=0,
            cr3=0,
            cr4=0,
            cr8=0,
            efer=0,
            apic_base=_APIC_BASE_RESET,
        )

    def copy(self) -> Sregs:
        """A copy that shares no segment or table with the original."""
        return Sregs(
            self.cs.copy(),
            self.ds.copy(),
            self.es.copy(),
            self.fs.copy(),
            self.gs.copy(),
            self.ss.copy(),
            self.tr.copy(),
            self.ldt.copy(),
            self.gdt.copy(),
            self.idt.copy(),
            self.cr0,
            self.cr2,
            self.cr3,
            self.cr4,
            self.cr8,
            self.efer,
            self.apic_base,
        )
