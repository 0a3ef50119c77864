"""The CPU's state inside Unicorn, seen as it lies in memory, and the check that it lies there.

Unicorn's register API cannot reach what a hypervisor needs (hidden segment parts, intercept words, flags the translator
keys on, pending interrupt lines) and costs more than a microsecond a call. The whole state is one C structure
(CPUX86State, target/i386/cpu.h of QEMU 5.0.1); this module lays a ctypes structure over it.

Nothing here trusts the offsets: `locate` proves those that it depends on (a saved context must be byte-identical, what
an instance starts with must be in its place) and raises `EngineError` otherwise; what they do, `selfcheck` proves. So
a Unicorn whose internals moved is refused and never silently wrong. Foreign pointers are read through /proc/self/mem,
where a bad one is an error and not a crash.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any, Final

from vtlkit.engine.api import EngineError
from vtlkit.engine.unicorn.binding import Library
from vtlkit.x86.registers import CR0_ET, CR0_PE, EFER_LMA, EFER_LME, GENERAL_REGISTERS, RFLAGS_FIXED

CC_OP_EFLAGS: Final = 1
"""Value of `cc_op` that says: the arithmetic flags are in `cc_src`."""

HF_CPL = 3
HF_INHIBIT_IRQ: Final = 1 << 3
HF_CS32: Final = 1 << 4
HF_SS32: Final = 1 << 5
HF_ADDSEG: Final = 1 << 6
HF_PE: Final = 1 << 7
HF_MP_SHIFT: Final = 9
HF_LMA: Final = 1 << 14
HF_CS64: Final = 1 << 15
HF_SVME: Final = 1 << 20
HF_GUEST: Final = 1 << 21
HF_OSFXSR: Final = 1 << 22
HF_SMAP: Final = 1 << 23

HF2_GIF: Final = 1 << 0
HF2_NMI: Final = 1 << 2

INTERRUPT_SMI: Final = 0x0040
INTERRUPT_NMI: Final = 0x0200
INTERRUPT_VIRQ: Final = 0x0100

CC_FLAGS: Final = 0x8D5
"""CF, PF, AF, ZF, SF, OF: the flags that the translator keeps lazily."""


class SegmentCache(ctypes.Structure):
    """A segment register with its hidden part; `flags` is the second dword of the descriptor (type at bit 8)."""

    _fields_ = [
        ("selector", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


_LAYOUT: Final[list[tuple[int, str, Any]]] = [
    *((8 * number, name, ctypes.c_uint64) for number, name in enumerate(GENERAL_REGISTERS)),
    (128, "rip", ctypes.c_uint64),
    (136, "eflags", ctypes.c_uint64),
    (152, "cc_src", ctypes.c_uint64),
    (168, "cc_op", ctypes.c_uint32),
    (172, "df", ctypes.c_int32),
    (176, "hflags", ctypes.c_uint32),
    (180, "hflags2", ctypes.c_uint32),
    (184, "segs", SegmentCache * 6),
    (328, "ldt", SegmentCache),
    (352, "tr", SegmentCache),
    (376, "gdt", SegmentCache),
    (400, "idt", SegmentCache),
    (424, "cr", ctypes.c_uint64 * 9),
    (592, "efer", ctypes.c_uint64),
    (604, "fpstt", ctypes.c_uint32),
    (608, "fpus", ctypes.c_uint16),
    (610, "fpuc", ctypes.c_uint16),
    (612, "fptags", ctypes.c_uint8 * 8),
    (624, "fpregs", (ctypes.c_uint8 * 16) * 8),
    (776, "fp_status", ctypes.c_uint8 * 8),
    (808, "sse_status", ctypes.c_uint8 * 8),
    (816, "mxcsr", ctypes.c_uint32),
    (824, "xmm", (ctypes.c_uint8 * 64) * 32),
    (4800, "sysenter_cs", ctypes.c_uint32),
    (4808, "sysenter_esp", ctypes.c_uint64),
    (4816, "sysenter_eip", ctypes.c_uint64),
    (4824, "star", ctypes.c_uint64),
    (4840, "lstar", ctypes.c_uint64),
    (4848, "cstar", ctypes.c_uint64),
    (4856, "fmask", ctypes.c_uint64),
    (4864, "kernel_gs_base", ctypes.c_uint64),
    (4896, "tsc_aux", ctypes.c_uint64),
    (4904, "xcr0", ctypes.c_uint64),
    (5280, "pat", ctypes.c_uint64),
    (5304, "pkru", ctypes.c_uint32),
    (5384, "error_code", ctypes.c_uint32),
    (5388, "exception_is_int", ctypes.c_int32),
    (5392, "exception_next_eip", ctypes.c_uint64),
    (5400, "dr", ctypes.c_uint64 * 8),
    (5496, "old_exception", ctypes.c_int32),
    (5504, "vm_vmcb", ctypes.c_uint64),
    (5512, "tsc_offset", ctypes.c_uint64),
    (5520, "intercept", ctypes.c_uint64),
    (5528, "intercept_cr_read", ctypes.c_uint16),
    (5530, "intercept_cr_write", ctypes.c_uint16),
    (5532, "intercept_dr_read", ctypes.c_uint16),
    (5534, "intercept_dr_write", ctypes.c_uint16),
    (5536, "intercept_exceptions", ctypes.c_uint32),
    (5556, "v_tpr", ctypes.c_uint8),
    (5560, "retaddr", ctypes.c_uint64),
    (5632, "features", ctypes.c_uint64 * 34),
]

CONTEXT_BYTES: Final = 5568
"""Bytes of the state that `uc_context_save` copies (up to `end_reset_fields`)."""


def _padded(layout: list[tuple[int, str, Any]]) -> list[tuple[str, Any]]:
    fields: list[tuple[str, Any]] = []
    position = 0
    for offset, name, kind in layout:
        if offset > position:
            fields.append((f"_gap{position}", ctypes.c_uint8 * (offset - position)))
        fields.append((name, kind))
        position = offset + ctypes.sizeof(kind)
    return fields


class CpuState(ctypes.Structure):
    """CPUX86State, the fields that the engine reads or writes. Field names are QEMU's; registers have their own."""

    _pack_ = 1
    _fields_ = _padded(_LAYOUT)


for _offset, _name, _kind in _LAYOUT:
    assert getattr(CpuState, _name).offset == _offset, _name

_CPU_POINTER: Final = 440
_EMU_COUNTER: Final = 1368
_EMU_COUNT: Final = 1376
_INVALID_ERROR: Final = 1424
_NO_EXIT_REQUEST: Final = 2034
_HOOK_INSERT: Final = 2032
_NESTED_LEVEL: Final = 14840
_LAST_BLOCK: Final = 14848
_NEXT_FLAGS: Final = 24
_INTERRUPT_REQUEST: Final = 28
_ENV_POINTER: Final = 296
_DECREMENTER_POINTER: Final = 304
_IO_PC: Final = 33144

_CONTEXT_HEADER_MAX: Final = 64
_BLOCK_BYTES: Final = 512


class LiveCpu:
    """Typed views of one instance's live words."""

    __slots__ = (
        "count",
        "counter",
        "cpu",
        "decrementer",
        "interrupt_request",
        "invalid_error",
        "io_pc",
        "last_block",
        "next_flags",
        "no_exit_request",
        "state",
    )

    def __init__(self, handle: int, cpu: int, env: int, decrementer: int) -> None:
        self.cpu = cpu
        self.state = CpuState.from_address(env)
        self.interrupt_request = ctypes.c_uint32.from_address(cpu + _INTERRUPT_REQUEST)
        # Bits 31:16 of the instruction decrementer: all ones leave the chain of blocks at the next block's start.
        self.decrementer = ctypes.c_uint16.from_address(decrementer + 2)
        self.counter = ctypes.c_uint64.from_address(handle + _EMU_COUNTER)
        self.count = ctypes.c_uint64.from_address(handle + _EMU_COUNT)
        self.invalid_error = ctypes.c_uint32.from_address(handle + _INVALID_ERROR)
        # True while blocks are translated: they look for an exit request at their start only, not behind every access.
        self.no_exit_request = ctypes.c_bool.from_address(handle + _NO_EXIT_REQUEST)
        # Unicorn tells of a new block only if one has run to its end before: give it one. It is copied from, no more.
        self.last_block = ctypes.create_string_buffer(_BLOCK_BYTES)
        ctypes.c_uint64.from_address(handle + _LAST_BLOCK).value = ctypes.addressof(self.last_block)
        # Flags of the next block to translate or find; 1 is a block of one instruction, all ones are the usual flags.
        self.next_flags = ctypes.c_uint32.from_address(cpu + _NEXT_FLAGS)
        # Where in translated code the memory-mapped access was made that a device callback answers.
        self.io_pc = ctypes.c_uint64.from_address(cpu + _IO_PC)


class _OwnMemory:
    """This process's memory, read in a way that survives bad pointers."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mem", os.O_RDONLY)

    def __enter__(self) -> _OwnMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at `address`; fewer (or none) where the memory is not mapped."""
        try:
            return os.pread(self._fd, size, address)
        except (OSError, OverflowError):
            return b""

    def pointer(self, address: int) -> int:
        data = self.read(address, 8)
        return struct.unpack("<Q", data)[0] if len(data) == 8 else 0


def _moved(what: str) -> EngineError:
    return EngineError(
        f"this build of Unicorn keeps {what} elsewhere than expected; the embedded engine refuses it: "
        "pip install 'unicorn==2.1.4' or use --engine kvm"
    )


def locate(lib: Library, handle: int) -> LiveCpu:
    """Find the live state of a fresh instance and prove that it is the state.

    The instance must be new: it has the registers that `uc_open` gives it, those of long mode without paging.

    Raises:
        EngineError: something is not where it should be.
    """
    with _OwnMemory() as memory:
        cpu = memory.pointer(handle + _CPU_POINTER)
        env = memory.pointer(cpu + _ENV_POINTER)
        decrementer = memory.pointer(cpu + _DECREMENTER_POINTER)
        if len(memory.read(env, ctypes.sizeof(CpuState))) != ctypes.sizeof(CpuState):
            raise _moved("its CPU state")
        if len(memory.read(decrementer, 4)) != 4:
            raise _moved("its instruction decrementer")
        saved = _saved_context(lib, handle)
        for header in range(0, _CONTEXT_HEADER_MAX, 8):
            if saved[header : header + CONTEXT_BYTES] == memory.read(env, CONTEXT_BYTES):
                break
        else:
            raise _moved("its CPU state")
        # What stands before the state may happen to look like what stands before the saved copy.
        found = CpuState.from_buffer_copy(memory.read(env, ctypes.sizeof(CpuState)))
        if (found.eflags, found.cr[0], found.efer) != (RFLAGS_FIXED, CR0_PE | CR0_ET, EFER_LME | EFER_LMA):
            raise _moved("its CPU state")
        fresh = memory.read(handle + _HOOK_INSERT, 4)
        if fresh[:1] + fresh[2:] != b"\0\0\1" or memory.read(handle + _NESTED_LEVEL, 16) != bytes(16):
            raise _moved("what it knows of the last block")
    return LiveCpu(handle, cpu, env, decrementer)


def _saved_context(lib: Library, handle: int) -> bytes:
    context = ctypes.c_void_p()
    lib.check(lib.context_alloc(handle, ctypes.byref(context)), "a context")
    try:
        lib.check(lib.context_save(handle, context), "saving a context")
        assert context.value is not None
        return ctypes.string_at(context.value, lib.context_size(handle))
    finally:
        lib.check(lib.context_free(context), "freeing a context")
