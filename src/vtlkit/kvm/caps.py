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

    NESTED = enum.auto()
    """1: guests may run guests of their own by SVM (the parameter `nested` of kvm_amd); before the first vCPU."""


def _nested(vm: Vm, value: int) -> None:
    if value not in (0, 1):
        raise KvmError(errno.EINVAL, f"nested guests are 0 (off) or 1 (on), not {value}")
    if vm.vcpus:
        raise KvmError(errno.EINVAL, "nested guests must be enabled before the first vCPU")
    if vm.vendor.name != "svm":
        raise KvmError(errno.EINVAL, f"nested guests are there for vendor svm, not {vm.vendor.name}")
    vm.nested = bool(value)


_HANDLERS: Final[dict[Cap, Handler]] = {Cap.NESTED: _nested}


def enable_cap(vm: Vm, cap: Cap, argument: int) -> None:
    """Switch a capability on.

    Raises:
        KvmError: EINVAL for one that cannot be switched on; or as the capability says.
    """
    handler = _HANDLERS.get(cap)
    if handler is None:
        raise KvmError(errno.EINVAL, f"{cap} cannot be switched on")
    handler(vm, argument)
