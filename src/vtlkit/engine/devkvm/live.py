"""The state of a stopped vCPU where the kernel leaves it: in `kvm_run`, by KVM_CAP_SYNC_REGS.

Reading a register is reading memory. What is written reaches the kernel with the next KVM_RUN: the general registers if
they differ from what the exit left (`Live.left`), system registers and events if they are marked.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from vtlkit.engine.devkvm import abi
from vtlkit.engine.devkvm.abi import SS
from vtlkit.engine.devkvm.run_page import LiveRegs, LiveSegment, LiveSregs, RunPage
from vtlkit.x86.registers import CR0_PE, CR0_PG, EFER_LMA, RFLAGS_IF, RFLAGS_VM, DescriptorTable, Segment, Sregs

APIC_BASE_RESET: Final = 0xFEE00900
REGS_END: Final = abi.RUN_SYNC + ctypes.sizeof(LiveRegs)
_SHADOW: Final = abi.RUN_EVENTS + abi.VcpuEvents.OFFSETS["interrupt_shadow"]
_NMI_MASKED: Final = abi.RUN_EVENTS + abi.VcpuEvents.OFFSETS["nmi_masked"]


class Live:
    """One vCPU's `kvm_run`."""

    def __init__(self, fd: int, size: int) -> None:
        self.bytes = mmap.mmap(fd, size)
        self.view = memoryview(self.bytes)
        self.page = RunPage.from_buffer(self.bytes)
        self.regs = LiveRegs.from_buffer(self.bytes, abi.RUN_SYNC)
        self.sregs = LiveSregs.from_buffer(self.bytes, abi.RUN_SREGS)
        self.segments = [
            LiveSegment.from_buffer(self.bytes, abi.RUN_SREGS + number * ctypes.sizeof(LiveSegment))
            for number in range(8)
        ]
        self.left = b""
        """The general registers as the kernel has them."""
        self.dirty = 0
        """Classes of registers that the kernel is to take over, but for the general ones."""
        self.pkru = 0
        self.apic_base = APIC_BASE_RESET
        self.page.kvm_valid_regs = abi.SYNC_ALL

    @property
    def cpl(self) -> int:
        if not self.sregs.cr0 & CR0_PE:
            return 0
        return 3 if self.regs.rflags & RFLAGS_VM else self.segments[SS].dpl

    @property
    def shadow(self) -> int:
        return self.bytes[_SHADOW]

    @shadow.setter
    def shadow(self, value: int) -> None:
        self.bytes[_SHADOW] = value
        self.dirty |= abi.SYNC_EVENTS

    @property
    def nmi_masked(self) -> bool:
        return bool(self.bytes[_NMI_MASKED])

    @nmi_masked.setter
    def nmi_masked(self, value: bool) -> None:
        self.bytes[_NMI_MASKED] = value
        self.dirty |= abi.SYNC_EVENTS

    def write_back(self) -> None:
        """Before KVM_RUN: say what has changed."""
        if self.bytes[_SHADOW] == abi.SHADOW_STI and not self.regs.rflags & RFLAGS_IF:
            # VM entry refuses blocking by STI with interrupts off; the other kind does the same.
            self.shadow = abi.SHADOW_MOV_SS
        dirty = self.dirty
        if self.bytes[abi.RUN_SYNC : REGS_END] != self.left:
            dirty |= abi.SYNC_REGS
        self.page.kvm_dirty_regs = dirty
        self.dirty = 0

    def get_sregs(self) -> Sregs:
        record = abi.SregsRecord.unpack_from(self.view, abi.RUN_SREGS)
        return Sregs(
            cs=_segment(record.cs),
            ds=_segment(record.ds),
            es=_segment(record.es),
            fs=_segment(record.fs),
            gs=_segment(record.gs),
            ss=_segment(record.ss),
            tr=_segment(record.tr),
            ldt=_segment(record.ldt),
            gdt=DescriptorTable(record.gdt.base, record.gdt.limit),
            idt=DescriptorTable(record.idt.base, record.idt.limit),
            cr0=record.cr0,
            cr2=record.cr2,
            cr3=record.cr3,
            cr4=record.cr4,
            cr8=0,
            efer=record.efer,
            apic_base=0,
        )

    def set_sregs(self, sregs: Sregs) -> None:
        record = abi.SregsRecord(
            cs=_record(sregs.cs),
            ds=_record(sregs.ds),
            es=_record(sregs.es),
            fs=_record(sregs.fs),
            gs=_record(sregs.gs),
            ss=_record(sregs.ss),
            tr=_record(sregs.tr),
            ldt=_record(sregs.ldt),
            gdt=abi.TableRecord(sregs.gdt.base, sregs.gdt.limit),
            idt=abi.TableRecord(sregs.idt.base, sregs.idt.limit),
            cr0=sregs.cr0,
            cr2=sregs.cr2,
            cr3=sregs.cr3,
            cr4=sregs.cr4,
            cr8=self.page.cr8,
            efer=sregs.efer,
            apic_base=self.apic_base,
        )
        if not record.cr0 & CR0_PG:
            # A processor has LMA without paging never, and the kernel refuses such a state.
            record.efer &= ~EFER_LMA
        record.pack_into(self.view, abi.RUN_SREGS)
        self.dirty |= abi.SYNC_SREGS


def _segment(record: abi.SegmentRecord) -> Segment:
    attributes = (
        record.type
        | record.s << 4
        | record.dpl << 5
        | record.present << 7
        | record.avl << 8
        | record.l << 9
        | record.db << 10
        | record.g << 11
    )
    return Segment(record.selector, record.base, record.limit, attributes)


def _record(segment: Segment) -> abi.SegmentRecord:
    attributes = segment.attributes
    return abi.SegmentRecord(
        base=segment.base,
        limit=segment.limit,
        selector=segment.selector,
        type=attributes & 0xF,
        present=attributes >> 7 & 1,
        dpl=attributes >> 5 & 3,
        db=attributes >> 10 & 1,
        s=attributes >> 4 & 1,
        l=attributes >> 9 & 1,
        g=attributes >> 11 & 1,
        avl=attributes >> 8 & 1,
        unusable=0 if attributes >> 7 & 1 else 1,
    )
