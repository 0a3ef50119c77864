"""Errors of a caller of the hypervisor API: the errno that the KVM ioctl would return, with words."""

from __future__ import annotations

import errno
import os

from vtlkit.engine.api import Engine


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


def require_boundary(engine: Engine) -> None:
    """Refuse to write registers in the middle of an I/O instruction, which would finish with what it began with.

    Raises:
        KvmError: EBUSY. KVM_RUN with `immediate_exit`, here `Vcpu.complete_exit`, finishes the instruction.
    """
    if not engine.at_boundary:
        raise KvmError(errno.EBUSY, "the vCPU has an I/O instruction to finish before its registers can be set")


class GuestMemoryError(Exception):
    """Guest-physical memory at `gpa` cannot be accessed as asked: no memory there, or attributes forbid it."""

    def __init__(self, gpa: int, size: int, *, write: bool) -> None:
        super().__init__(f"no {'writable' if write else 'readable'} memory at {gpa:#x}+{size:#x}")
        self.gpa = gpa
        self.size = size
        self.write = write
