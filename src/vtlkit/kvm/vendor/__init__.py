"""How the run loop behaves on each kind of hardware virtualisation: SVM and VMX, by name."""

from __future__ import annotations

import errno
from typing import Final

from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.vendor.api import Vendor
from vtlkit.kvm.vendor.svm import SVM
from vtlkit.kvm.vendor.vmx import VMX

__all__ = ["DEFAULT_VENDOR", "VENDORS", "Vendor", "vendor_named"]

VENDORS: Final[dict[str, Vendor]] = {vendor.name: vendor for vendor in (SVM, VMX)}
DEFAULT_VENDOR: Final = SVM.name


def vendor_named(name: str) -> Vendor:
    """The vendor of that name.

    Raises:
        KvmError: EINVAL, there is none.
    """
    vendor = VENDORS.get(name)
    if vendor is None:
        raise KvmError(errno.EINVAL, f"vendor '{name}': there are {' and '.join(VENDORS)}")
    return vendor
