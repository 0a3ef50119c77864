"""Starting processors: HvCallStartVirtualProcessor, and what higher VTLs may say about lower ones that start some.

TLFS, HvCallStartVirtualProcessor, "DenyLowerVtlStartup", "InterceptVpStartup"; docs/design/vtl-switch.md. The call's
task checks and leaves the start state at the processor; the processor's own task takes it, so that nobody else writes
its vCPUs. `Vp.starting` holds it meanwhile: filled under the partition's lock, emptied by the processor's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.identifiers import HV_MAX_VTLS, HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import (
    HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP,
    HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP,
    HvVtlEntryReason,
)
from vtlkit.kvm.uapi import UNSTARTED, HypercallParameters, Hyperv, InterceptedHypercall, Vcpu, cr4_allowed
from vtlkit.vmm.vsm import context, intercepts
from vtlkit.vmm.vsm.intercepts import wishes
from vtlkit.vmm.vsm.targets import plain_vtl

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.partition import Partition
    from vtlkit.vmm.vsm.vp import Vp

START: Final = HV_MAX_VTLS
"""Bit of `Vp._look`: a start state waits in `Vp.starting`."""
_DENY: Final = HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP.mask


class Start(NamedTuple):
    """Where a processor is to start."""

    level: int
    state: context.InitialState


# --- the caller -------------------------------------------------------------------------------------------------------


def start_virtual_processor(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallStartVirtualProcessor by VTL `level`."""
    request = io.HV_INPUT_START_VIRTUAL_PROCESSOR.unpack_from(call.data)
    partition = vp.partition
    target = plain_vtl(request.TargetVtl)
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    # The caller's own processor runs.
    if request.VpIndex in (vp.index, HV_VP_INDEX_SELF) or request.VpIndex >= len(partition.vps):
        return HvStatus.INVALID_VP_INDEX, 0
    if target is None or any(request.RsvdZ):
        return HvStatus.INVALID_PARAMETER, 0
    other = partition.vps[request.VpIndex]
    with partition.lock:
        if target > level or _denied(partition, level):
            return HvStatus.ACCESS_DENIED, 0
        if target not in other.vcpus:
            return HvStatus.INVALID_VTL_STATE, 0
        state = context.decode(request.VpContext, cr4_allowed(vp.vcpus[level]), real_mode=target == 0)
        if state is None:
            return HvStatus.INVALID_REGISTER_VALUE, 0
        if other.starting.load() is not None or not _startable(other, target):
            return HvStatus.INVALID_VP_STATE, 0
        other.starting.store(Start(target, state))
    other.ask(START)
    return HvStatus.SUCCESS, 0


def _startable(vp: Vp, target: int) -> bool:
    """VTL 0 has not been started; and no other VTL runs, if one above it is to. Stops the processor for a moment."""
    vcpu = vp.vcpus[0]
    with vp.stopped(), vp.waits.alone(vcpu):
        return vcpu.get_mp_state() in UNSTARTED and (target == 0 or vp.active.load() == 0)


def _denied(partition: Partition, level: int) -> bool:
    """Whether a VTL above `level` has said that those below it start no processors. The caller holds the lock."""
    return any(other > level and vtl.config & _DENY for other, vtl in partition.vtls.items())


def configuration_changed(partition: Partition) -> None:
    """A VTL's configuration has been written: INIT and SIPI follow it. The caller holds the lock."""
    denied = _denied(partition, 0)
    for vp in partition.vps:
        # INIT and SIPI reach no VTL above 0 anyway.
        vp.vcpus[0].startup_blocked.store(denied or max(vp.vcpus) > 0)
    wishes.apply(partition)


def intercepted(vp: Vp, level: int, vcpu: Vcpu, exit_: Hyperv) -> bool:
    """Tell a higher VTL of the caller's HvCallStartVirtualProcessor, if one wants to know, and switch to it.

    The caller stays at the hypercall instruction, which has had no effect. Whether it was so.
    """
    partition = vp.partition
    with partition.lock:
        if _denied(partition, level):
            return False
        told = min(
            (
                other
                for other, vtl in partition.vtls.items()
                if other > level and other in vp.vcpus and HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP.get(vtl.config)
            ),
            default=0,
        )
    if not told:
        return False
    exit_.retry = True
    unfinished = vcpu.complete_exit()
    assert unfinished is None
    message = intercepts.of_exit(vp, level, vcpu, InterceptedHypercall(exit_.length))
    intercepts.tell(vp, level, told, message)
    return True


# --- the processor that is started ------------------------------------------------------------------------------------


def take(vp: Vp, active: int) -> None:
    """Start where `Vp.starting` says. The processor's task, VTL `active` between two instructions or in an exit."""
    start = vp.starting.load()
    if start is None:
        return
    vcpu = vp.vcpus[start.level]
    if start.level == active and not vp.settle(active):
        # What was left of an instruction took the processor to another VTL: from there, then.
        vp.ask(START)
        return
    with vp.waits.alone(vcpu):
        start.state.apply(vcpu)
    vp.starting.store(None)
    top = max(vp.vcpus)
    if active == 0 and top:
        # A higher VTL sees each start before a lower one runs.
        vp.switch(0, top, HvVtlEntryReason.HvVtlEntryInterrupt)
