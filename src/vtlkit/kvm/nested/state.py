"""KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE: an L2 survives save and restore.

As in KVM the ordinary calls save and restore the registers of whoever runs, which is L2; here is what they do not know:
GIF, L1's control area with the virtual interrupt as it stands, and L1's registers. The vCPU does not run meanwhile.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vtlkit.kvm.errors import KvmError, require_boundary
from vtlkit.kvm.nested.vmcb import VmcbControl, VmcbSave
from vtlkit.kvm.requests import Req
from vtlkit.x86.msr import MSR_EFER
from vtlkit.x86.registers import EFER_SVME

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu


@dataclass(frozen=True, slots=True)
class NestedState:
    """`struct kvm_nested_state` of SVM. Without `guest_mode` the rest but `gif` has no meaning."""

    gif: bool = True
    guest_mode: bool = False
    run_pending: bool = False
    """VMRUN is done and EVENTINJ, in `control`, is not delivered (KVM_STATE_NESTED_RUN_PENDING)."""
    vmcb_gpa: int = 0
    control: bytes = b""
    """The control area, 400h bytes."""
    host: bytes = b""
    """L1's registers as a state save area, 298h bytes."""


def get_nested_state(vcpu: Vcpu) -> NestedState:
    """KVM_GET_NESTED_STATE."""
    nested = vcpu.nested
    if not vcpu.guest_mode:
        return NestedState(vcpu.gif)
    pending = nested.entry_pending()
    control = nested.control.copy()
    if pending:
        control.event_inj, control.event_inj_error = nested.entry_words
    return NestedState(vcpu.gif, True, pending, nested.vmcb_gpa, control.pack(), nested.host.pack())


def set_nested_state(vcpu: Vcpu, state: NestedState) -> None:
    """KVM_SET_NESTED_STATE, after the registers of L2, its CPUID and EFER have been set.

    Raises:
        KvmError: EINVAL, a state that no vCPU of this VM can be in, or whose permission maps are not there; EBUSY in
            the middle of an I/O instruction; nothing changed.
    """
    require_boundary(vcpu.engine)
    nested = vcpu.nested
    if (state.guest_mode or not state.gif) and not vcpu.vm.nested:
        raise KvmError(errno.EINVAL, "nested guests are not enabled in this VM")
    if not state.guest_mode:
        nested.forget()
        vcpu.gif = state.gif
        vcpu.make_request(Req.EVENT)
        return
    if not vcpu.engine.get_msr(MSR_EFER) & EFER_SVME:
        raise KvmError(errno.EINVAL, "there is no L2 without EFER.SVME: set the registers first")
    try:
        control, host = VmcbControl.unpack(state.control), VmcbSave.unpack(state.host)
    except struct.error as error:
        raise KvmError(errno.EINVAL, f"nested state: {error}") from None
    if not nested.restore(state.vmcb_gpa, control, host, run_pending=state.run_pending):
        raise KvmError(errno.EINVAL, "nested state: no control block like this can have been entered")
    vcpu.gif = state.gif
