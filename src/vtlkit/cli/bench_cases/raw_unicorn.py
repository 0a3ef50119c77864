"""The rival: Unicorn used bare, through prepared ctypes prototypes, on the very loops that bench.elf runs.

It has what its user needs and nothing more: long mode with the guest's kind of page tables, RAM, and for an exit the
least that can be done: a hook that stops the translator, the register that says where, and a new start.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.binding import Library

COMPUTE: Final = bytes.fromhex("4801d0 4831c1 488d544a07 48c1c00d 486bc925 4829c2 48ffcf 75e5")
MEMORY: Final = bytes.fromhex("488b0c02 4889440208 4883c050 4825f0ffff00 48ffcf 75e8")
CPUID: Final = bytes.fromhex("31c0 0fa2 48ffcf 75f7")
APIC_WRITE: Final = bytes.fromhex("8902 48ffcf 75f9")
"""The loops of bench.elf, byte for byte: RDI counts down, RDX points to what is accessed."""

MEMORY_START: Final = 0x1000000
APIC_TPR: Final = 0xFEE00080

_APIC_PAGE: Final = 0xFEE00000
_RAM_SIZE: Final = 34 << 20
_ITERATIONS: Final = 0x1000
_TABLES: Final = 0x2000
_CODE: Final = 0x100000
_UC_X86_REG_RIP: Final = 41
_UC_X86_INS_CPUID: Final = 113
_MANY: Final = 1 << 40
"""More instructions than any loop has: counting, without being stopped by the count."""

_CpuidCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class RawUnicorn:
    """One bare instance with one loop. `counting`: run with an instruction count, as the deterministic mode does."""

    def __init__(self, loop: bytes, *, counting: bool, address: int = 0) -> None:
        from vtlkit.engine.api import RamBlock
        from vtlkit.engine.unicorn import binding

        self._lib: Library = binding.library()
        self._count = _MANY if counting else 0
        handle = ctypes.c_void_p()
        self._check(self._lib.open(binding.UC_ARCH_X86, binding.UC_MODE_64, ctypes.byref(handle)))
        assert handle.value is not None
        self._handle = handle.value
        self._ram = RamBlock(_RAM_SIZE)
        self._ram.view[_TABLES : _TABLES + 6 * 4096] = _identity_tables(_TABLES)
        self._check(self._lib.mem_map_ptr(self._handle, 0, _RAM_SIZE, binding.UC_PROT_ALL, self._ram.address))
        self._callbacks: list[object] = []
        program = _program(loop, address)
        self._end = _CODE + len(program)
        self._ram.view[_CODE : self._end] = program

    def close(self) -> None:
        self._check(self._lib.close(self._handle))

    def run(self, iterations: int) -> float:
        """Seconds that `iterations` turns of the loop take, without exits; start-up and translation left out."""
        self._start(1)
        begin = time.perf_counter()
        self._start(iterations)
        return time.perf_counter() - begin

    def run_with_exits(self, iterations: int) -> float:
        """As `run`, for a loop with CPUID: each one stops the translator, which is then started again."""
        lib, handle = self._lib, self._handle

        def on_cpuid(_uc: int, _data: int) -> int:
            lib.emu_stop(handle)
            return 0

        if not self._callbacks:
            callback = _CpuidCallback(on_cpuid)
            self._callbacks.append(callback)
            from vtlkit.engine.unicorn.binding import Hook

            lib.hook_add(handle, Hook.INSN, callback, _UC_X86_INS_CPUID)
        self._until_done(1)
        begin = time.perf_counter()
        self._until_done(iterations)
        return time.perf_counter() - begin

    def map_callbacks(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        """Have accesses to the APIC's page call back (uc_mmio_map)."""
        from vtlkit.engine.unicorn.binding import MmioReadCallback, MmioWriteCallback

        on_read = MmioReadCallback(lambda _uc, offset, size, _data: read(offset, size))
        on_write = MmioWriteCallback(lambda _uc, offset, size, value, _data: write(offset, size, value))
        self._callbacks += [on_read, on_write]
        self._check(self._lib.mmio_map(self._handle, _APIC_PAGE, 4096, on_read, None, on_write, None))

    def _start(self, iterations: int) -> None:
        self._set_iterations(iterations)
        self._check(self._lib.emu_start(self._handle, _CODE, self._end, 0, self._count))

    def _until_done(self, iterations: int) -> None:
        lib, handle, end = self._lib, self._handle, self._end
        self._set_iterations(iterations)
        read_register = ctypes.CDLL(lib.path).uc_reg_read
        read_register.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        rip = ctypes.c_uint64(_CODE)
        where = ctypes.byref(rip)
        while rip.value != end:
            self._check(lib.emu_start(handle, rip.value, end, 0, self._count))
            read_register(handle, _UC_X86_REG_RIP, where)

    def _set_iterations(self, iterations: int) -> None:
        struct.pack_into("<Q", self._ram.view, _ITERATIONS, iterations)

    def _check(self, error: int) -> None:
        self._lib.check(error, "the rival's call")


def _program(loop: bytes, address: int) -> bytes:
    """Turns paging on, loads the loop's registers, and falls into the loop."""
    code = b"\xb8" + struct.pack("<I", _TABLES) + b"\x0f\x22\xd8"  # mov eax, tables; mov cr3, rax
    code += b"\x0f\x20\xc0\x0f\xba\xe8\x1f\x0f\x22\xc0"  # mov rax, cr0; bts eax, 31; mov cr0, rax
    code += b"\x48\x8b\x3c\x25" + struct.pack("<I", _ITERATIONS)  # mov rdi, [iterations]
    code += b"\xba" + struct.pack("<I", address)  # mov edx, address
    return code + b"\x31\xc0\x31\xc9" + loop  # xor eax, eax; xor ecx, ecx


def _identity_tables(base: int) -> bytes:
    """Four levels that map the first 4 GiB onto themselves: 2 MiB pages, as bench.elf maps its memory."""
    entries = [[base + 4096 | 3], [base + (2 + i) * 4096 | 3 for i in range(4)]]
    entries += [[(512 * i + j) << 21 | 0x83 for j in range(512)] for i in range(4)]
    return b"".join(struct.pack(f"<{len(table)}Q", *table).ljust(4096, b"\0") for table in entries)
