"""HvRegisterVsmVpSecureConfigVtl0 to 14 and HvRegisterVsmVpWaitForTlbLock: TLB locks as registers (TLFS, "Virtual
Secure Mode", HV_REGISTER_VSM_VP_SECURE_VTL_CONFIG; OpenVMM for what the published pages leave out).

Every VTL of a processor has a secure configuration register for each VTL below it. The lock of `TlbLocks` guards all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.hvdef import vsm
from vtlkit.hvdef.identifiers import HV_MAX_VTLS
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm.registers.table import Register, Scope

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def _refusal(vp: Vp, level: int, lower: int) -> HvStatus:
    """Why VTL `level` of the processor has no such register."""
    if lower >= level:
        return HvStatus.ACCESS_DENIED
    return HvStatus.SUCCESS if lower in vp.vcpus else HvStatus.INVALID_VTL_STATE


def _secure_config(lower: int) -> Register:
    def read(vp: Vp, level: int, _vcpu: Vcpu) -> int | HvStatus:
        refusal = _refusal(vp, level, lower)
        if refusal:
            return refusal
        return vsm.HV_VSM_VP_SECURE_CONFIG_TLB_LOCKED if vp.partition.tlb_locks.held(vp, level, lower) else 0

    def write(vp: Vp, level: int, _vcpu: Vcpu, value: int) -> HvStatus:
        refusal = _refusal(vp, level, lower)
        if refusal:
            return refusal
        # MBEC is not offered: MbecEnabled is as good as reserved.
        if value & ~vsm.HV_VSM_VP_SECURE_CONFIG_TLB_LOCKED:
            return HvStatus.INVALID_REGISTER_VALUE
        locks = vp.partition.tlb_locks
        if value:
            locks.acquire(vp, level, lower)
        else:
            locks.release(vp, level, lower)
        return HvStatus.SUCCESS

    return Register(read, write, Scope.PARTITION)


def _get_wait(vp: Vp, level: int, _vcpu: Vcpu) -> int:
    """Whether the VTL waits."""
    return vsm.HV_VSM_VP_WAIT_FOR_TLB_LOCK_WAIT if vp.partition.tlb_locks.waits(vp, level) else 0


def _set_wait(vp: Vp, level: int, _vcpu: Vcpu, value: int) -> HvStatus:
    if value & ~vsm.HV_VSM_VP_WAIT_FOR_TLB_LOCK_WAIT:
        return HvStatus.INVALID_REGISTER_VALUE
    if value:
        vp.partition.tlb_locks.wait_for_locks(vp, level)
    return HvStatus.SUCCESS


REGISTERS: Final[Mapping[int, Register]] = {
    **{Name(Name.HvRegisterVsmVpSecureConfigVtl0 + lower): _secure_config(lower) for lower in range(HV_MAX_VTLS - 1)},
    # Written while the VTL stands between two instructions: it executes none after that.
    Name.HvRegisterVsmVpWaitForTlbLock: Register(_get_wait, _set_wait),
}
