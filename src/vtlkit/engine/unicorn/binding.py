"""Prepared ctypes prototypes of the Unicorn 2.1 C API (include/unicorn/unicorn.h), and nothing else.

The stock Python binding wraps each call in checks and allocations; an exit costs a handful of calls, so the functions
are bound once here with fixed argument types. The library itself is the one that the `unicorn` wheel ships.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from vtlkit.engine.api import PAGE_SIZE, EngineError

SUPPORTED: Final = (2, 1)
"""Major and minor version that the state overlay was measured on; the self-check has the last word."""

UC_ARCH_X86: Final = 4
UC_MODE_64: Final = 8

UC_ERR_OK: Final = 0

UC_PROT_READ: Final = 1
UC_PROT_WRITE: Final = 2
UC_PROT_EXEC: Final = 4
UC_PROT_ALL: Final = 7

UC_X86_INS_IN: Final = 218
UC_X86_INS_OUT: Final = 500
UC_X86_INS_SYSCALL: Final = 699
UC_X86_INS_SYSENTER: Final = 700


_REGION_ADDRESS: Final = 64
_REGION_END: Final = 144
"""Offsets of `addr` and `end` in QEMU's MemoryRegion."""
_REGION_OPERATIONS: Final = 16
_ACCESS_LIMITS: Final = 40
_WIDEST_ACCESS: Final = 7
"""Of `ops` in it; of `valid` and `impl` in MemoryRegionOps; of `impl.max_access_size` in those, in 4-byte words."""


class Hook(enum.IntEnum):
    """Hook types (uc_hook_type)."""

    INTR = 1 << 0
    INSN = 1 << 1
    CODE = 1 << 2
    MEM_READ_UNMAPPED = 1 << 4
    MEM_WRITE_UNMAPPED = 1 << 5
    MEM_FETCH_UNMAPPED = 1 << 6
    MEM_READ_PROT = 1 << 7
    MEM_WRITE_PROT = 1 << 8
    MEM_FETCH_PROT = 1 << 9
    INSN_INVALID = 1 << 14
    EDGE_GENERATED = 1 << 15


class MemoryEvent(enum.IntEnum):
    """What the memory hooks report (uc_mem_type)."""

    READ_UNMAPPED = 19
    WRITE_UNMAPPED = 20
    FETCH_UNMAPPED = 21
    WRITE_PROT = 22
    READ_PROT = 23
    FETCH_PROT = 24


_CTL_WRITE: Final = 1 << 30
CTL_USE_EXITS: Final = 4 | (1 << 26) | _CTL_WRITE
CTL_EXITS: Final = 6 | (2 << 26) | _CTL_WRITE
CTL_TB_FLUSH: Final = 10 | _CTL_WRITE
CTL_TLB_FLUSH: Final = 11 | _CTL_WRITE

InterruptCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
InvalidCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
InCallback = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
OutCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
InstructionCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
MemoryCallback = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
)
MmioReadCallback = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p)
MmioWriteCallback = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p
)


class TranslationBlock(ctypes.Structure):
    """`uc_tb`: one translated block, as the edge hook reports it."""

    _fields_ = [("pc", ctypes.c_uint64), ("icount", ctypes.c_uint16), ("size", ctypes.c_uint16)]


EdgeCallback = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.POINTER(TranslationBlock), ctypes.POINTER(TranslationBlock), ctypes.c_void_p
)


class Library:
    """The loaded library, entry points typed; `ctl` is variadic in C, so its arguments are passed as 64-bit words."""

    def __init__(self, path: str, version: tuple[int, int]) -> None:
        self.path = path
        self.version = version
        # CDLL releases the GIL around a call: an engine on another thread, and the kick that ends a slice, can run.
        lib = ctypes.CDLL(path)
        handle = ctypes.c_void_p
        word = ctypes.c_uint64
        size = ctypes.c_size_t

        def bind(name: str, *argtypes: Any) -> Callable[..., int]:
            function = getattr(lib, name)
            function.argtypes = argtypes
            function.restype = ctypes.c_int
            return function  # type: ignore[no-any-return]

        self.open = bind("uc_open", ctypes.c_int, ctypes.c_int, ctypes.POINTER(handle))
        self.close = bind("uc_close", handle)
        self.emu_start = bind("uc_emu_start", handle, word, word, word, size)
        self.emu_stop = bind("uc_emu_stop", handle)
        self.mem_map_ptr = bind("uc_mem_map_ptr", handle, word, word, ctypes.c_uint32, ctypes.c_void_p)
        self.mem_unmap = bind("uc_mem_unmap", handle, word, word)
        self.mem_protect = bind("uc_mem_protect", handle, word, word, ctypes.c_uint32)
        self.mmio_map = bind(
            "uc_mmio_map", handle, word, word, MmioReadCallback, ctypes.c_void_p, MmioWriteCallback, ctypes.c_void_p
        )
        self.context_alloc = bind("uc_context_alloc", handle, ctypes.POINTER(handle))
        self.context_save = bind("uc_context_save", handle, handle)
        self.context_free = bind("uc_context_free", handle)
        self.ctl = bind("uc_ctl", handle, ctypes.c_int, word, word)

        def internal(name: str, result: Any, *argtypes: Any) -> Callable[..., Any]:
            function = getattr(lib, f"{name}_x86_64", None)
            if function is None:
                raise EngineError(f"this build of Unicorn does not export {name}: pip install 'unicorn==2.1.4'")
            function.argtypes = argtypes
            function.restype = result
            return function  # type: ignore[no-any-return]

        self.restore_state = internal("cpu_restore_state", ctypes.c_bool, handle, word, ctypes.c_bool)
        """(CPU, place in translated code, False): set RIP and the flags as of the instruction that it comes from."""
        self.arithmetic_flags: Callable[[int, int], int] = internal(
            "cpu_cc_compute_all", ctypes.c_uint32, handle, ctypes.c_int
        )
        """(CPU state, its `cc_op`): the arithmetic flags that the lazy form stands for."""
        self.update_dr7 = internal("cpu_x86_update_dr7", None, handle, ctypes.c_uint32)
        """(CPU state, DR7): store it, arm and disarm breakpoints."""
        self._find_region = internal("find_memory_mapping", handle, handle, word)
        self._region_ram = internal("memory_region_get_ram_addr", word, handle)
        self._invalidate = internal("tb_invalidate_phys_range", None, handle, word, word)
        self._hook_add = lib.uc_hook_add
        self._hook_add.restype = ctypes.c_int
        self._context_size = lib.uc_context_size
        self._context_size.restype = size
        self._context_size.argtypes = (handle,)
        self._strerror = lib.uc_strerror
        self._strerror.restype = ctypes.c_char_p
        self._strerror.argtypes = (ctypes.c_int,)

    def drop_translations(self, handle: int, gpa: int, size: int) -> None:
        """Forget the code translated from mapped guest-physical memory. (`uc_mem_write` does not, and `uc_ctl` walks
        the guest's page tables and leaves its traces there.)"""
        end = gpa + size
        while gpa < end:
            region = self._find_region(handle, gpa)
            if region is None:
                raise EngineError(f"{gpa:#x} is not mapped")
            first = ctypes.c_uint64.from_address(region + _REGION_ADDRESS).value
            last = ctypes.c_uint64.from_address(region + _REGION_END).value
            if not first <= gpa < last or first % PAGE_SIZE or last % PAGE_SIZE:
                raise EngineError("this build of Unicorn keeps memory regions otherwise: pip install 'unicorn==2.1.4'")
            ram = self._region_ram(region) + (gpa - first)
            piece = min(end, last) - gpa
            self._invalidate(handle, ram, ram + piece)
            gpa += piece

    def widen_io(self, handle: int, gpa: int) -> None:
        """Let 8-byte accesses of an I/O range come in one piece; Unicorn makes regions that take 4 bytes at most."""
        region = self._find_region(handle, gpa)
        operations = ctypes.c_uint64.from_address(region + _REGION_OPERATIONS).value
        limits = (ctypes.c_uint32 * 10).from_address(operations + _ACCESS_LIMITS)
        if any(limits):
            raise EngineError("this build of Unicorn keeps I/O regions otherwise: pip install 'unicorn==2.1.4'")
        limits[_WIDEST_ACCESS] = 8

    def context_size(self, handle: int) -> int:
        """Bytes of a saved context, its header included."""
        return int(self._context_size(handle))

    def hook_add(self, handle: int, kind: int, callback: Any, instruction: int | None = None) -> None:
        """Install a hook for all addresses (begin > end means everywhere)."""
        token = ctypes.c_size_t()
        arguments = [
            ctypes.c_void_p(handle),
            ctypes.byref(token),
            ctypes.c_int(kind),
            ctypes.cast(callback, ctypes.c_void_p),
            ctypes.c_void_p(0),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
        ]
        if instruction is not None:
            arguments.append(ctypes.c_int(instruction))
        self.check(self._hook_add(*arguments), f"hook {kind:#x}")

    def check(self, error: int, what: str) -> None:
        """Raise `EngineError` unless `error` is UC_ERR_OK."""
        if error:
            raise EngineError(f"Unicorn refused {what}: {self.describe(error)}")

    def describe(self, error: int) -> str:
        """Unicorn's own words for an error number."""
        return f"{self._strerror(error).decode()} ({error})"


@cache
def library() -> Library:
    """Load the library once.

    The wheel's shared object is found without importing its Python package, which takes longer than a guest's start.

    Raises:
        EngineError: the wheel is missing, or its version is not the one that the overlay is written for.
    """
    spec = importlib.util.find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the embedded engine needs the 'unicorn' package: pip install 'unicorn>=2.1.4,<2.2'")
    path = Path(next(iter(spec.submodule_search_locations))) / "lib" / "libunicorn.so.2"
    try:
        probe = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"the 'unicorn' package has no usable shared library: {error}") from error
    major, minor = ctypes.c_uint(), ctypes.c_uint()
    probe.uc_version(ctypes.byref(major), ctypes.byref(minor))
    version = (major.value, minor.value)
    if version != SUPPORTED:
        raise EngineError(
            f"Unicorn {version[0]}.{version[1]} is installed; the embedded engine is written for 2.1.x: "
            "pip install 'unicorn>=2.1.4,<2.2'"
        )
    return Library(str(path), version)
