"""SVM behaviour of the run loop. Mirrors arch/x86/kvm/svm/svm.c.

What blocks an interrupt or NMI, how an immediate exit is forced. The engine is the hardware; this says how AMD's
behaves and lets the run loop stay free of vendors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtlkit.engine.api import Exit
from vtlkit.kvm.vendor.api import Vendor

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu


class SvmVendor(Vendor):
    """One per process; the state is the vCPU's."""

    name = "svm"

    def vcpu_run(self, vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> Exit:
        """Enter the guest until the next exit (`svm_vcpu_run`).

        `force_immediate_exit` is the self-IPI of the hardware: the pending interrupt makes VMRUN exit before the first
        guest instruction, after an injected event has been delivered.
        """
        return vcpu.engine.run(budget, force_immediate_exit=force_immediate_exit)


SVM = SvmVendor()
