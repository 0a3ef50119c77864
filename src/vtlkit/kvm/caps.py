"""What user space can switch on in a VM (KVM_ENABLE_CAP): a handler for each capability."""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.kvm.errors import KvmError

if TYPE_CHECKING:
    from vtlkit.kvm.vm import Vm

Handler: TypeAlias = Callable[["Vm", int], None]


class Cap(enum.Enum):
    """KVM_CAP_*, by name: an extension's number is its kernel's."""

    APIC_ID_GROUPS = enum.auto()
    """The argument is how many high bits of a vCPU's number name its APIC namespace (`kvm.namespaces`)."""


def _apic_id_groups(vm: Vm, bits: int) -> None:
    vm.namespaces.enable_groups(bits)


_HANDLERS: Final[dict[Cap, Handler]] = {Cap.APIC_ID_GROUPS: _apic_id_groups}


def enable_cap(vm: Vm, cap: Cap, argument: int) -> None:
    """Switch a capability on.

    Raises:
        KvmError: EINVAL for one that cannot be switched on; or as the capability says.
    """
    handler = _HANDLERS.get(cap)
    if handler is None:
        raise KvmError(errno.EINVAL, f"{cap} cannot be switched on")
    handler(vm, argument)
