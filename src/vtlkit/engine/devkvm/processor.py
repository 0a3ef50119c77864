"""What the host's processor does for the guest without an exit: CPUID and the time-stamp counter."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vtlkit.engine.devkvm import abi, syscalls
from vtlkit.engine.devkvm.vcpu import KernelVcpu
from vtlkit.engine.processor import CpuidLeaf
from vtlkit.x86 import cpuid as bits

_U32: Final = 0xFFFFFFFF
_U64: Final = (1 << 64) - 1
_MSR_TSC: Final = 0x10

_HYPERVISORS: Final = {
    (1, 0): (
        0,
        0,
        bits.CPUID_1_ECX_X2APIC | bits.CPUID_1_ECX_TSC_DEADLINE | bits.CPUID_1_ECX_HYPERVISOR,
        bits.CPUID_1_EDX_APIC | bits.CPUID_1_EDX_HTT,
    ),
    (7, 0): (0, bits.CPUID_7_0_EBX_TSC_ADJUST, 0, 0),
    (0x80000001, 0): (0, 0, 0, bits.CPUID_1_EDX_APIC),
}
"""Feature bits that are the hypervisor's to offer, whatever the processor does: its APIC, its MSRs."""
_FEATURES: Final = {
    (1, 0): (0, 0, _U32, _U32),
    (7, 0): (0, _U32, _U32, _U32),
    (0xD, 1): (_U32, 0, 0, 0),
    (0x80000001, 0): (0, 0, _U32, _U32),
}
"""Where CPUID has feature bits (EAX, EBX, ECX, EDX): a guest is told those of which the processor has them, too."""
_IDENTITY: Final = {(0, 0): (0, _U32, _U32, _U32), (1, 0): (_U32, 0, 0, 0), (0x80000000, 0): (0, _U32, _U32, _U32)}
"""Vendor and model: the processor's, as it executes SYSCALL, SYSENTER and what else vendors differ in."""


def offered(leaves: Sequence[CpuidLeaf], supported: Iterable[abi.CpuidEntry2]) -> list[CpuidLeaf]:
    """`leaves` as this processor can keep them."""
    mine = {(entry.function, entry.index): (entry.eax, entry.ebx, entry.ecx, entry.edx) for entry in supported}
    nothing = (0, 0, 0, 0)
    told = []
    for leaf in leaves:
        key = leaf.function, leaf.subleaf
        own, kept = mine.get(key, nothing), _HYPERVISORS.get(key, nothing)
        features, identity = _FEATURES.get(key, nothing), _IDENTITY.get(key, nothing)
        words = []
        for value, has, keep, feature, identify in zip(leaf[2:6], own, kept, features, identity, strict=True):
            value &= ~feature | has | keep
            words.append(value & ~identify | has & identify)
        eax, ebx, ecx, edx = words
        told.append(CpuidLeaf(leaf.function, leaf.subleaf, eax, ebx, ecx, edx, leaf.significant_index))
    return told


def kernel_entries(leaves: Iterable[CpuidLeaf]) -> list[abi.CpuidEntry2]:
    """For KVM_SET_CPUID2."""
    return [
        abi.CpuidEntry2(
            leaf.function,
            leaf.subleaf,
            abi.CPUID_FLAG_SIGNIFICANT_INDEX if leaf.significant_index else 0,
            *leaf[2:6],
        )
        for leaf in leaves
    ]


class SharedTime:
    """Keeps the time-stamp counters of one machine's engines in step: counters that are set to what one of them would
    read, within a millisecond, read the same from then on (`kvm_synchronize_tsc`; to the kernel each is a VM)."""

    def __init__(self, new_vcpu: Callable[[], KernelVcpu]) -> None:
        self._lock = threading.Lock()
        self._new_vcpu = new_vcpu
        self._reader: KernelVcpu | None = None
        self._reader_offset: int | None = None
        self._offset: int | None = None

    def _host_tsc(self) -> int | None:
        """The host's counter, by a vCPU that never runs: the others cannot be asked while they do. The caller holds
        the lock."""
        if self._reader is None:
            self._reader = self._new_vcpu()
            self._reader_offset = _offset_of(self._reader)
        if self._reader_offset is None:
            return None
        return self._reader.get_msr(_MSR_TSC) - self._reader_offset

    def set_tsc(self, vcpu: KernelVcpu, value: int) -> int | None:
        """The guest's counter is `value` now; what it has more than the host's, where that can be said."""
        with self._lock:
            host = self._host_tsc()
            if host is None:
                vcpu.set_msr(_MSR_TSC, value)
                return None
            offset = (value - host) & _U64
            known = self._offset
            if known is not None and (offset - known + vcpu.tsc_khz & _U64) <= 2 * vcpu.tsc_khz:
                offset = known
            else:
                self._offset = offset
            _attribute(vcpu, abi.SET_DEVICE_ATTR, ctypes.c_uint64(offset))
            # Some kernels take it and let the guest read the host's counter all the same.
            return _offset_of(vcpu)

    def read_tsc(self, offset: int) -> int:
        """A guest's counter now."""
        with self._lock:
            host = self._host_tsc()
        assert host is not None
        return (host + offset) & _U64

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None


def _offset_of(vcpu: KernelVcpu) -> int | None:
    """What the guest's counter has more than the host's; None where the kernel does not say."""
    buffer = ctypes.c_uint64()
    try:
        _attribute(vcpu, abi.GET_DEVICE_ATTR, buffer)
    except OSError:
        return None
    return buffer.value


def _attribute(vcpu: KernelVcpu, request: int, buffer: ctypes.c_uint64) -> None:
    attribute = abi.DeviceAttr(0, abi.VCPU_TSC_CTRL, abi.VCPU_TSC_OFFSET, ctypes.addressof(buffer))
    syscalls.ioctl(vcpu.fd, request, attribute.pack(), "KVM_VCPU_TSC_OFFSET")
