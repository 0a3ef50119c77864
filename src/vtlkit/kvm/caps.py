"""Capabilities of a VM that user space enables (KVM_ENABLE_CAP): a table, one entry each."""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vtlkit.kvm.errors import KvmError

if TYPE_CHECKING:
    from vtlkit.kvm.vm import Vm

_U32: Final = 0xFFFFFFFF


class Cap(enum.IntEnum):
    """KVM_CAP_*: KVM's numbers (include/uapi/linux/kvm.h), and from 0x10000 those of what no kernel has."""

    HALT_POLL = 182
    """One argument: the longest time, in ns (32 bits), that a halted vCPU polls before it sleeps; 0 is not at all."""
    APIC_ID_GROUPS = 0x10000
    """One argument: how many high bits of a vCPU's number name its APIC namespace (`kvm.namespaces`)."""
    NESTED = 0x10001
    """One argument: 1 if guests may run guests of their own by SVM (the parameter `nested` of kvm_amd), 0 if not;
    before the first vCPU."""


def _halt_poll(vm: Vm, nanoseconds: int) -> None:
    if not 0 <= nanoseconds <= _U32:
        raise KvmError(errno.EINVAL, f"halt-polling for {nanoseconds} ns: give 0 to {_U32}")
    vm.halt_poll_max_ns = nanoseconds


def _apic_id_groups(vm: Vm, bits: int) -> None:
    vm.namespaces.enable_groups(bits)


def _nested(vm: Vm, value: int) -> None:
    if value not in (0, 1):
        raise KvmError(errno.EINVAL, f"nested guests are 0 (off) or 1 (on), not {value}")
    if vm.vcpus:
        raise KvmError(errno.EINVAL, "nested guests must be enabled before the first vCPU")
    vm.nested = bool(value)


_ENABLE: Final[dict[int, tuple[int, Callable[..., None]]]] = {
    Cap.HALT_POLL: (1, _halt_poll),
    Cap.APIC_ID_GROUPS: (1, _apic_id_groups),
    Cap.NESTED: (1, _nested),
}
"""Capability -> how many arguments it takes, and what enables it."""


def enable_cap(vm: Vm, cap: int, *arguments: int) -> None:
    """KVM_ENABLE_CAP on a VM.

    Raises:
        KvmError: EINVAL for a capability that cannot be enabled, or arguments that it does not take; or as the
            capability says.
    """
    entry = _ENABLE.get(cap)
    if entry is None:
        raise KvmError(errno.EINVAL, f"capability {int(cap)} cannot be enabled on a VM")
    count, enable = entry
    if len(arguments) != count:
        raise KvmError(errno.EINVAL, f"{Cap(cap).name} takes {count} argument(s), not {len(arguments)}")
    enable(vm, *arguments)
