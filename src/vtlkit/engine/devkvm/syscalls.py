"""System calls that Python has no, or no fit, functions for.

`ioctl` goes through ctypes: KVM_RUN must come back with EINTR, and a wrapper that tries again, as Python's own may
(PEP 475), would never do so while `immediate_exit` is set. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any, Final

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
_MAP_SHARED: Final = 1
_MAP_PRIVATE: Final = 2
_MAP_FIXED: Final = 0x10
_MAP_ANONYMOUS: Final = 0x20
_MAP_NORESERVE: Final = 0x4000
_MREMAP_MAYMOVE: Final = 1
_MREMAP_FIXED: Final = 2
_FAILED: Final = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    lib = ctypes.CDLL(None, use_errno=True)
    lib.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    lib.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    lib.mmap.restype = ctypes.c_void_p
    lib.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
    lib.mremap.restype = ctypes.c_void_p
    lib.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    lib.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return lib


@cache
def small_ioctl() -> Any:
    """(descriptor, request, argument) -> result, -1 with `ctypes.get_errno()`; all three fit 31 bits.

    Without declared types: converting to them costs a third of what calling takes. Integers go as C int, which libffi
    widens to a register.
    """
    return ctypes.CDLL(None, use_errno=True).ioctl


def tgkill() -> Any:
    """(process, thread, signal), both as the kernel numbers them: a thread that has ended is an error, no crash."""
    return _libc().tgkill


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def ioctl(fd: int, request: int, argument: int | bytes | bytearray = 0, what: str = "ioctl") -> int:
    """An ioctl that is not interrupted. A bytearray is written back.

    Raises:
        OSError: the kernel refuses; the text says what.
    """
    if isinstance(argument, bytearray):
        pointer: Any = ctypes.addressof(ctypes.c_char.from_buffer(argument)) if argument else 0
    elif isinstance(argument, bytes):
        pointer = ctypes.cast(ctypes.c_char_p(argument), ctypes.c_void_p)
    else:
        pointer = argument
    result = int(_libc().ioctl(fd, request, pointer))
    if result < 0:
        raise _error(what)
    return result


def reserve(size: int) -> int:
    """Address space that nobody may access, `size` bytes."""
    address = _libc().mmap(None, size, PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    if address in (None, _FAILED):
        raise _error(f"{size:#x} bytes of address space")
    return int(address)


def hide(address: int, size: int) -> None:
    """Make what is mapped there inaccessible, and forget it."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    if _libc().mmap(address, size, PROT_NONE, flags, -1, 0) in (None, _FAILED):
        raise _error("memory map")


def alias(source: int, size: int, address: int) -> None:
    """Map the shared memory at `source` at `address` as well, in place of what is there."""
    if _libc().mremap(source, 0, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, address) in (None, _FAILED):
        raise _error("second mapping of guest memory")


def protect(address: int, size: int, protection: int) -> None:
    """mprotect."""
    if _libc().mprotect(address, size, protection):
        raise _error("protection of guest memory")


def unmap(address: int, size: int) -> None:
    """munmap."""
    if _libc().munmap(address, size):
        raise _error("memory map")
