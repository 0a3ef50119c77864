"""Errors of a caller of the hypervisor API: the errno that the KVM ioctl would return, with words."""

from __future__ import annotations

import errno
import os


class KvmError(Exception):
    """The caller asked for something that KVM refuses. `errno` is KVM's; what a guest does is never this exception."""

    def __init__(self, error: int, message: str) -> None:
        super().__init__(f"{errno.errorcode.get(error, error)}: {message}")
        self.errno = error
        self.message = message

    @property
    def strerror(self) -> str:
        """The system's words for the errno."""
        return os.strerror(self.errno)


class GuestMemoryError(Exception):
    """Guest-physical memory at `gpa` cannot be accessed as asked: no memory there, or attributes forbid it."""

    def __init__(self, gpa: int, size: int, *, write: bool) -> None:
        super().__init__(f"no {'writable' if write else 'readable'} memory at {gpa:#x}+{size:#x}")
        self.gpa = gpa
        self.size = size
        self.write = write
