"""/dev/kvm itself: whether it can be used here, what it lacks and what that costs.

A short-lived look, made once for a factory.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vtlkit.engine.api import EngineError
from vtlkit.engine.devkvm import abi, syscalls

PATH: Final = "/dev/kvm"
_CPUID_ENTRIES: Final = 256

_NEEDED: Final = {
    abi.CAP_USER_MEMORY: ("KVM_CAP_USER_MEMORY", "memory of this process as guest memory"),
    abi.CAP_IMMEDIATE_EXIT: ("KVM_CAP_IMMEDIATE_EXIT", "kicks that are not lost (Linux 4.11)"),
    abi.CAP_X86_USER_SPACE_MSR: ("KVM_CAP_X86_USER_SPACE_MSR", "MSR accesses that exit (Linux 5.10)"),
    abi.CAP_X86_MSR_FILTER: ("KVM_CAP_X86_MSR_FILTER", "MSR accesses that exit (Linux 5.10)"),
    abi.CAP_VCPU_EVENTS: ("KVM_CAP_VCPU_EVENTS", "injection of events"),
    abi.CAP_DEBUGREGS: ("KVM_CAP_DEBUGREGS", "debug registers"),
    abi.CAP_XSAVE: ("KVM_CAP_XSAVE", "x87, SSE and AVX state"),
    abi.CAP_XCRS: ("KVM_CAP_XCRS", "XCR0"),
}
_WANTED: Final = {
    abi.CAP_SET_GUEST_DEBUG: ("KVM_CAP_SET_GUEST_DEBUG", "no NMI windows: an NMI behind an NMI is delivered late"),
    abi.CAP_EXIT_ON_EMULATION_FAILURE: (
        "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
        "what the kernel cannot emulate in user mode is #UD in the guest, not an error",
    ),
    abi.CAP_TSC_CONTROL: ("KVM_CAP_TSC_CONTROL", "the guest's TSC runs at the host's frequency"),
    abi.CAP_DISABLE_QUIRKS2: ("KVM_CAP_DISABLE_QUIRKS2", "VMCALL and VMMCALL of the other vendor are patched"),
}
_NESTED_PAGING: Final = ("/sys/module/kvm_intel/parameters/ept", "/sys/module/kvm_amd/parameters/npt")
_SYNC: Final = ("KVM_CAP_SYNC_REGS", "registers without a system call")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this KVM can do."""

    slots: int
    mmap_size: int
    tsc_control: bool
    guest_debug: bool
    emulation_failure: bool
    quirks: int
    xsave_size: int
    lacks: tuple[str, ...] = ()
    """What it lacks that the engine can do without, and what that costs: one line each."""
    shadows: bool = False
    """It shadows the guest's page tables, as neither EPT nor nested paging is there."""
    emulates_no_execute: bool = True
    """Memory that may be read, not executed, is emulated; else it ends the run. The user's choice."""
    cpuid: tuple[abi.CpuidEntry2, ...] = field(default=(), repr=False)
    """KVM_GET_SUPPORTED_CPUID."""


def open_kvm(path: str = PATH) -> int:
    """A descriptor of /dev/kvm.

    Raises:
        EngineError: one line: why not, and what to do.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise EngineError(f"there is no {path}: this machine offers no KVM, or its module is not loaded") from None
    except PermissionError:
        raise EngineError(f"{path} may not be opened: ask for membership of its group, or run as root") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be opened: {os.strerror(error.errno or 0)}") from error


def examine(fd: int) -> Capabilities:
    """Ask for all that the engine needs.

    Raises:
        EngineError: something that it cannot do without is missing.
    """
    version = _ask(fd, abi.GET_API_VERSION)
    if version != abi.API_VERSION:
        raise EngineError(f"{PATH} speaks version {version} of its interface, not {abi.API_VERSION}")
    missing = [f"{name} ({use})" for cap, (name, use) in _NEEDED.items() if _check(fd, cap) <= 0]
    if _check(fd, abi.CAP_SYNC_REGS) & abi.SYNC_ALL != abi.SYNC_ALL:
        missing.append(f"{_SYNC[0]} ({_SYNC[1]})")
    if missing:
        raise EngineError(f"{PATH} lacks {', '.join(missing)}: use --engine unicorn, or a newer kernel")
    return Capabilities(
        slots=max(_check(fd, abi.CAP_NR_MEMSLOTS), 32),
        mmap_size=_ask(fd, abi.GET_VCPU_MMAP_SIZE),
        tsc_control=_check(fd, abi.CAP_TSC_CONTROL) > 0,
        guest_debug=_check(fd, abi.CAP_SET_GUEST_DEBUG) > 0,
        emulation_failure=_check(fd, abi.CAP_EXIT_ON_EMULATION_FAILURE) > 0,
        quirks=max(_check(fd, abi.CAP_DISABLE_QUIRKS2), 0),
        xsave_size=max(_check(fd, abi.CAP_XSAVE2), 4096),
        lacks=tuple(f"{name}: {cost}" for cap, (name, cost) in _WANTED.items() if _check(fd, cap) <= 0),
        shadows=not any(map(_is_on, _NESTED_PAGING)),
        cpuid=supported_cpuid(fd),
    )


def _is_on(parameter: str) -> bool:
    try:
        return Path(parameter).read_text().strip() in ("Y", "1")
    except OSError:
        return False


def supported_cpuid(fd: int) -> tuple[abi.CpuidEntry2, ...]:
    """KVM_GET_SUPPORTED_CPUID: what guests may be told."""
    size = abi.CpuidEntry2.SIZE
    buffer = bytearray(8 + _CPUID_ENTRIES * size)
    struct.pack_into("<II", buffer, 0, _CPUID_ENTRIES, 0)
    syscalls.ioctl(fd, abi.GET_SUPPORTED_CPUID, buffer, "KVM_GET_SUPPORTED_CPUID")
    (count,) = struct.unpack_from("<I", buffer)
    return tuple(abi.CpuidEntry2.unpack_from(buffer, 8 + number * size) for number in range(count))


def _check(fd: int, capability: int) -> int:
    return _ask(fd, abi.CHECK_EXTENSION, capability)


def _ask(fd: int, request: int, argument: int = 0) -> int:
    try:
        return syscalls.ioctl(fd, request, argument)
    except OSError:
        return -1
