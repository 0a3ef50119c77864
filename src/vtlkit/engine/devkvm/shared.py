"""What the VTLs of a processor share and `kvm_run` does not hold: DR0..DR3, XCR0, x87 and vector registers.

Each is an ioctl to read and one to write, which is what a VTL switch costs. So what the kernel has is kept here until
its vCPU is entered, or told otherwise: the vCPU that a processor comes from is read, the one that it goes to is written
where it differs from what it was left with.
"""

from __future__ import annotations

import ctypes
from typing import Final

from vtlkit.engine.devkvm import abi, syscalls

_BREAKPOINTS: Final = slice(0, 32)
"""DR0..DR3 in `struct kvm_debugregs`."""


class Record:
    """One structure of the kernel's, at an address that it can be given."""

    def __init__(self, size: int, get: int, put: int, name: str) -> None:
        self.bytes = bytearray(size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self._get, self._put = get, put
        self._name = name

    def fetch(self, fd: int) -> bytes:
        """What the kernel has. Raises OSError if it refuses, as `store` does."""
        syscalls.ioctl(fd, self._get, self._address, f"KVM_GET_{self._name}")
        return bytes(self.bytes)

    def store(self, fd: int) -> None:
        syscalls.ioctl(fd, self._put, self._address, f"KVM_SET_{self._name}")


class SharedRegisters:
    """Of one vCPU; belongs to its task."""

    def __init__(self, xsave_size: int) -> None:
        self.known = False
        """The kernel has what is here."""
        self.debug = Record(abi.DebugRegs.SIZE, abi.GET_DEBUGREGS, abi.SET_DEBUGREGS, "DEBUGREGS")
        self.xcrs = Record(abi.OneXcr.SIZE, abi.GET_XCRS, abi.SET_XCRS, "XCRS")
        get_xsave = abi.GET_XSAVE if xsave_size == 4096 else abi.GET_XSAVE2
        self.xsave = Record(xsave_size, get_xsave, abi.SET_XSAVE, "XSAVE")

    def fetch(self, fd: int) -> None:
        """Have what the kernel has.

        Raises:
            OSError: the kernel refuses.
        """
        if not self.known:
            for record in (self.debug, self.xcrs, self.xsave):
                record.fetch(fd)
            self.known = True

    def put(self, fd: int, record: Record, data: bytes) -> None:
        """Have the kernel take `data` over in place of one of the records; raises OSError if it refuses."""
        self.known = False
        record.bytes[:] = data
        record.store(fd)

    def take(self, fd: int, source: SharedRegisters) -> None:
        """Have the kernel take over what `source` knows.

        Raises:
            OSError: the kernel refuses.
        """
        self.fetch(fd)
        # If one is refused, what the kernel has is not known any more.
        self.known = False
        if self.debug.bytes[_BREAKPOINTS] != source.debug.bytes[_BREAKPOINTS]:
            self.debug.bytes[_BREAKPOINTS] = source.debug.bytes[_BREAKPOINTS]
            self.debug.store(fd)
        # XCR0 first: it says which parts of the XSAVE area there are.
        for record, other in ((self.xcrs, source.xcrs), (self.xsave, source.xsave)):
            if record.bytes != other.bytes:
                record.bytes[:] = other.bytes
                record.store(fd)
        self.known = True
