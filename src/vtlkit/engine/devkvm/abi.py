"""The part of /dev/kvm's ABI that the engine uses: numbers of linux/kvm.h and asm/kvm.h, and its structures.

A test compiles a program against the installed headers and compares every size, offset and number with it.
"""

from __future__ import annotations

from typing import Annotated, Final

from vtlkit.layout import Array, Bytes, Struct, u8, u16, u32, u64

API_VERSION: Final = 12

# --- ioctls (asm-generic/ioctl.h: direction 31:30, size 29:16, type 15:8, number 7:0) ---------------------------------

_KVMIO: Final = 0xAE
_WRITE: Final = 1
_READ: Final = 2


def _io(number: int, size: int = 0, direction: int = 0) -> int:
    return direction << 30 | size << 16 | _KVMIO << 8 | number


class UserspaceMemoryRegion(Struct, size=32):
    slot: u32 = 0
    flags: u32 = 0
    guest_phys_addr: u64 = 0
    memory_size: u64 = 0
    userspace_addr: u64 = 0


class VcpuEvents(Struct, size=64, offsets={"interrupt_injected": 8, "nmi_injected": 12, "flags": 20}):
    exception_injected: u8 = 0
    exception_nr: u8 = 0
    exception_has_error_code: u8 = 0
    exception_pending: u8 = 0
    exception_error_code: u32 = 0
    interrupt_injected: u8 = 0
    interrupt_nr: u8 = 0
    interrupt_soft: u8 = 0
    interrupt_shadow: u8 = 0
    nmi_injected: u8 = 0
    nmi_pending: u8 = 0
    nmi_masked: u8 = 0
    nmi_pad: u8 = 0
    sipi_vector: u32 = 0
    flags: u32 = 0
    rest: Annotated[bytes, Bytes(40)] = bytes(40)


class SegmentRecord(Struct, size=24):
    base: u64 = 0
    limit: u32 = 0
    selector: u16 = 0
    type: u8 = 0
    present: u8 = 0
    dpl: u8 = 0
    db: u8 = 0
    s: u8 = 0
    l: u8 = 0  # noqa: E741 - the header's name
    g: u8 = 0
    avl: u8 = 0
    unusable: u8 = 0
    padding: u8 = 0


class TableRecord(Struct, size=16):
    base: u64 = 0
    limit: u16 = 0
    padding: Annotated[tuple[int, ...], Array("H", 3)] = (0, 0, 0)


class SregsRecord(Struct, size=312, offsets={"cr0": 224, "efer": 264, "apic_base": 272}):
    cs: SegmentRecord = SegmentRecord()
    ds: SegmentRecord = SegmentRecord()
    es: SegmentRecord = SegmentRecord()
    fs: SegmentRecord = SegmentRecord()
    gs: SegmentRecord = SegmentRecord()
    ss: SegmentRecord = SegmentRecord()
    tr: SegmentRecord = SegmentRecord()
    ldt: SegmentRecord = SegmentRecord()
    gdt: TableRecord = TableRecord()
    idt: TableRecord = TableRecord()
    cr0: u64 = 0
    cr2: u64 = 0
    cr3: u64 = 0
    cr4: u64 = 0
    cr8: u64 = 0
    efer: u64 = 0
    apic_base: u64 = 0
    interrupt_bitmap: Annotated[tuple[int, ...], Array("Q", 4)] = (0, 0, 0, 0)


class DebugRegs(Struct, size=128):
    db: Annotated[tuple[int, ...], Array("Q", 4)] = (0, 0, 0, 0)
    dr6: u64 = 0
    dr7: u64 = 0
    flags: u64 = 0
    reserved: Annotated[tuple[int, ...], Array("Q", 9)] = (0,) * 9


class GuestDebug(Struct, size=72):
    control: u32 = 0
    pad: u32 = 0
    debugreg: Annotated[tuple[int, ...], Array("Q", 8)] = (0,) * 8


class MsrEntry(Struct, size=16):
    index: u32 = 0
    reserved: u32 = 0
    data: u64 = 0


class OneMsr(Struct, size=24):
    """`struct kvm_msrs` with one entry."""

    nmsrs: u32 = 1
    pad: u32 = 0
    entry: MsrEntry = MsrEntry()


class CpuidEntry2(Struct, size=40):
    function: u32 = 0
    index: u32 = 0
    flags: u32 = 0
    eax: u32 = 0
    ebx: u32 = 0
    ecx: u32 = 0
    edx: u32 = 0
    padding: Annotated[tuple[int, ...], Array("I", 3)] = (0, 0, 0)


class OneXcr(Struct, size=392):
    """`struct kvm_xcrs` with one register, XCR0."""

    nr_xcrs: u32 = 1
    flags: u32 = 0
    xcr: u32 = 0
    reserved: u32 = 0
    value: u64 = 0
    rest: Annotated[bytes, Bytes(368)] = bytes(368)


class EnableCap(Struct, size=104):
    cap: u32 = 0
    flags: u32 = 0
    args: Annotated[tuple[int, ...], Array("Q", 4)] = (0, 0, 0, 0)
    pad: Annotated[bytes, Bytes(64)] = bytes(64)


class MsrFilterRange(Struct, size=24, offsets={"bitmap": 16}):
    flags: u32 = 0
    nmsrs: u32 = 0
    base: u32 = 0
    hole: u32 = 0
    bitmap: u64 = 0


class DeviceAttr(Struct, size=24):
    flags: u32 = 0
    group: u32 = 0
    attr: u64 = 0
    addr: u64 = 0


VCPU_TSC_CTRL: Final = 0
VCPU_TSC_OFFSET: Final = 0
MSR_FILTER_RANGES: Final = 16
MSR_FILTER_SIZE: Final = 8 + MSR_FILTER_RANGES * MsrFilterRange.SIZE

GET_API_VERSION: Final = _io(0x00)
CREATE_VM: Final = _io(0x01)
CHECK_EXTENSION: Final = _io(0x03)
GET_VCPU_MMAP_SIZE: Final = _io(0x04)
GET_SUPPORTED_CPUID: Final = _io(0x05, 8, _READ | _WRITE)
CREATE_VCPU: Final = _io(0x41)
SET_USER_MEMORY_REGION: Final = _io(0x46, UserspaceMemoryRegion.SIZE, _WRITE)
SET_TSS_ADDR: Final = _io(0x47)
RUN: Final = _io(0x80)
SET_SREGS: Final = _io(0x84, SregsRecord.SIZE, _WRITE)
GET_MSRS: Final = _io(0x88, 8, _READ | _WRITE)
SET_MSRS: Final = _io(0x89, 8, _WRITE)
SET_SIGNAL_MASK: Final = _io(0x8B, 4, _WRITE)
SET_CPUID2: Final = _io(0x90, 8, _WRITE)
SET_GUEST_DEBUG: Final = _io(0x9B, GuestDebug.SIZE, _WRITE)
GET_DEBUGREGS: Final = _io(0xA1, DebugRegs.SIZE, _READ)
SET_DEBUGREGS: Final = _io(0xA2, DebugRegs.SIZE, _WRITE)
ENABLE_CAP: Final = _io(0xA3, EnableCap.SIZE, _WRITE)
GET_TSC_KHZ: Final = _io(0xA3)
GET_XSAVE: Final = _io(0xA4, 4096, _READ)
SET_XSAVE: Final = _io(0xA5, 4096, _WRITE)
GET_XCRS: Final = _io(0xA6, OneXcr.SIZE, _READ)
SET_XCRS: Final = _io(0xA7, OneXcr.SIZE, _WRITE)
X86_SET_MSR_FILTER: Final = _io(0xC6, MSR_FILTER_SIZE, _WRITE)
SET_DEVICE_ATTR: Final = _io(0xE1, 24, _WRITE)
GET_DEVICE_ATTR: Final = _io(0xE2, 24, _WRITE)
HAS_DEVICE_ATTR: Final = _io(0xE3, 24, _WRITE)
GET_XSAVE2: Final = _io(0xCF, 4096, _READ)

# --- capabilities -----------------------------------------------------------------------------------------------------

CAP_USER_MEMORY: Final = 3
CAP_SET_TSS_ADDR: Final = 4
CAP_NR_MEMSLOTS: Final = 10
CAP_SET_GUEST_DEBUG: Final = 23
CAP_VCPU_EVENTS: Final = 41
CAP_DEBUGREGS: Final = 50
CAP_XSAVE: Final = 55
CAP_XCRS: Final = 56
CAP_TSC_CONTROL: Final = 60
CAP_GET_TSC_KHZ: Final = 61
CAP_SYNC_REGS: Final = 74
CAP_HYPERV: Final = 44
CAP_IMMEDIATE_EXIT: Final = 136
CAP_X86_USER_SPACE_MSR: Final = 188
CAP_X86_MSR_FILTER: Final = 189
CAP_EXIT_ON_EMULATION_FAILURE: Final = 204
CAP_XSAVE2: Final = 208
CAP_DISABLE_QUIRKS2: Final = 213

MSR_EXIT_REASON_INVAL: Final = 1
MSR_EXIT_REASON_UNKNOWN: Final = 2
MSR_EXIT_REASON_FILTER: Final = 4
MSR_FILTER_READ: Final = 1
MSR_FILTER_WRITE: Final = 2
MSR_FILTER_DEFAULT_DENY: Final = 1
CPUID_FLAG_SIGNIFICANT_INDEX: Final = 1
QUIRK_FIX_HYPERCALL_INSN: Final = 1 << 5
SYNC_REGS: Final = 1
SYNC_SREGS: Final = 2
SYNC_EVENTS: Final = 4
SYNC_ALL: Final = SYNC_REGS | SYNC_SREGS | SYNC_EVENTS
EVENT_VALID_SHADOW: Final = 4
SHADOW_MOV_SS: Final = 1
SHADOW_STI: Final = 2
GUESTDBG_ENABLE: Final = 1
GUESTDBG_SINGLESTEP: Final = 2
GUESTDBG_USE_HW_BP: Final = 0x20000

# --- exits ------------------------------------------------------------------------------------------------------------

EXIT_IO: Final = 2
EXIT_HYPERCALL: Final = 3
EXIT_DEBUG: Final = 4
EXIT_HLT: Final = 5
EXIT_MMIO: Final = 6
EXIT_IRQ_WINDOW_OPEN: Final = 7
EXIT_SHUTDOWN: Final = 8
EXIT_FAIL_ENTRY: Final = 9
EXIT_INTR: Final = 10
EXIT_SET_TPR: Final = 11
EXIT_INTERNAL_ERROR: Final = 17
EXIT_X86_RDMSR: Final = 29
EXIT_X86_WRMSR: Final = 30
EXIT_MEMORY_FAULT: Final = 39
IO_IN: Final = 0
INTERNAL_ERROR_EMULATION: Final = 1
INTERNAL_ERROR_DELIVERY: Final = 3

# --- kvm_run ----------------------------------------------------------------------------------------------------------

RUN_INTERRUPT_WINDOW: Final = 0
RUN_IMMEDIATE_EXIT: Final = 1
RUN_EXIT_REASON: Final = 8
RUN_CR8: Final = 16
RUN_UNION: Final = 32
RUN_SYNC: Final = 304
RUN_SREGS: Final = RUN_SYNC + 144
RUN_EVENTS: Final = RUN_SREGS + SregsRecord.SIZE
RUN_SIZE: Final = 2352

SEGMENT_NAMES: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
CS, DS, ES, FS, GS, SS = range(6)
