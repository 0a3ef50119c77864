"""`struct kvm_run` and the registers in it, as the kernel and the engine share them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING


class LiveRegs(ctypes.Structure):
    """`struct kvm_regs` where kvm_run has it: the general registers of a stopped vCPU."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *(f"r{number}" for number in range(8, 16)),
            *("rip", "rflags"),
        )
    )
    if TYPE_CHECKING:
        rax: int
        rbx: int
        rcx: int
        rdx: int
        rsi: int
        rdi: int
        rsp: int
        rbp: int
        r8: int
        r9: int
        r10: int
        r11: int
        r12: int
        r13: int
        r14: int
        r15: int
        rip: int
        rflags: int


class LiveSegment(ctypes.Structure):
    """`struct kvm_segment` where kvm_run has it."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        *((name, ctypes.c_uint8) for name in ("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable", "pad")),
    )
    if TYPE_CHECKING:
        base: int
        limit: int
        selector: int
        type: int
        present: int
        dpl: int
        db: int
        s: int
        l: int  # noqa: E741 - the header's name
        g: int
        avl: int
        unusable: int


class LiveSregs(ctypes.Structure):
    """`struct kvm_sregs` where kvm_run has it; segments in the order of `SEGMENT_NAMES`."""

    _fields_ = (
        ("segments", LiveSegment * 8),
        ("tables", ctypes.c_uint64 * 4),
        *((name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
    )
    if TYPE_CHECKING:
        segments: ctypes.Array[LiveSegment]
        cr0: int
        cr2: int
        cr3: int
        cr4: int
        cr8: int
        efer: int
        apic_base: int


class _Io(ctypes.Structure):
    _fields_ = (
        ("direction", ctypes.c_uint8),
        ("size", ctypes.c_uint8),
        ("port", ctypes.c_uint16),
        ("count", ctypes.c_uint32),
        ("data_offset", ctypes.c_uint64),
    )


class _Mmio(ctypes.Structure):
    _fields_ = (
        ("phys_addr", ctypes.c_uint64),
        ("data", ctypes.c_uint8 * 8),
        ("len", ctypes.c_uint32),
        ("is_write", ctypes.c_uint8),
    )


class _Msr(ctypes.Structure):
    _fields_ = (
        ("error", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 7),
        ("reason", ctypes.c_uint32),
        ("index", ctypes.c_uint32),
        ("data", ctypes.c_uint64),
    )


class _Debug(ctypes.Structure):
    _fields_ = (
        ("exception", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("pc", ctypes.c_uint64),
        ("dr6", ctypes.c_uint64),
        ("dr7", ctypes.c_uint64),
    )


class _Internal(ctypes.Structure):
    _fields_ = (("suberror", ctypes.c_uint32), ("ndata", ctypes.c_uint32), ("data", ctypes.c_uint64 * 16))


class _MemoryFault(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("gpa", ctypes.c_uint64), ("size", ctypes.c_uint64))


class _Exit(ctypes.Union):
    _fields_ = (
        ("io", _Io),
        ("mmio", _Mmio),
        ("msr", _Msr),
        ("debug", _Debug),
        ("internal", _Internal),
        ("memory_fault", _MemoryFault),
        ("hardware_entry_failure_reason", ctypes.c_uint64),
        ("padding", ctypes.c_uint8 * 256),
    )


class RunPage(ctypes.Structure):
    """`struct kvm_run`, shared with the kernel."""

    _anonymous_ = ("exit",)
    _fields_ = (
        ("request_interrupt_window", ctypes.c_uint8),
        ("immediate_exit", ctypes.c_uint8),
        ("padding1", ctypes.c_uint8 * 6),
        ("exit_reason", ctypes.c_uint32),
        ("ready_for_interrupt_injection", ctypes.c_uint8),
        ("if_flag", ctypes.c_uint8),
        ("flags", ctypes.c_uint16),
        ("cr8", ctypes.c_uint64),
        ("apic_base", ctypes.c_uint64),
        ("exit", _Exit),
        ("kvm_valid_regs", ctypes.c_uint64),
        ("kvm_dirty_regs", ctypes.c_uint64),
        ("sync", ctypes.c_uint8 * 2048),
    )
    if TYPE_CHECKING:
        request_interrupt_window: int
        immediate_exit: int
        exit_reason: int
        ready_for_interrupt_injection: int
        if_flag: int
        flags: int
        cr8: int
        apic_base: int
        io: _Io
        mmio: _Mmio
        msr: _Msr
        debug: _Debug
        internal: _Internal
        memory_fault: _MemoryFault
        hardware_entry_failure_reason: int
        kvm_valid_regs: int
        kvm_dirty_regs: int
