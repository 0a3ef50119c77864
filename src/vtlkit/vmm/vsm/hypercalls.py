"""The hypercalls that VTL policy answers: decoded, dispatched by code, one small handler each.

TLFS, "Virtual Secure Mode" and the hypercall reference pages. A handler returns an HV_STATUS; a rep handler also says
how many elements it has done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.engine.api import Access
from vtlkit.hvdef import hypercall_io as io
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.hvdef.identifiers import GPA_LIMIT, HV_PAGE_SIZE, HV_PARTITION_ID_SELF
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import (
    HV_MAP_GPA_KERNEL_EXECUTABLE,
    HV_MAP_GPA_READABLE,
    HV_MAP_GPA_USER_EXECUTABLE,
    HV_MAP_GPA_WRITABLE,
    HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION,
    HV_VTL_RETURN_FAST,
    HvVtlEntryReason,
)
from vtlkit.kvm.uapi import HypercallParameters, Hyperv, TranslateRequest, Vcpu, cr4_allowed, decode_exit
from vtlkit.vmm.vsm import (
    assert_interrupt,
    context,
    device_interrupts,
    extended_calls,
    other_vtls,
    port_calls,
    processor_ids,
    startup,
    state_pages,
    translate,
    vp_registers,
    vtl_access,
)
from vtlkit.vmm.vsm.intercepts import install
from vtlkit.vmm.vsm.targets import input_vtl, processor_and_vtl, target_vp
from vtlkit.x86.exceptions import Vector

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

Handler: TypeAlias = Callable[["Vp", int, HypercallParameters], tuple[HvStatus, int]]
"""(processor, caller's VTL, parameters) -> (status, elements done of a rep call)"""

_READ_WRITE: Final = HV_MAP_GPA_READABLE | HV_MAP_GPA_WRITABLE
_EXECUTE: Final = HV_MAP_GPA_KERNEL_EXECUTABLE | HV_MAP_GPA_USER_EXECUTABLE
ACCESS_OF_MAP_FLAGS: Final = {
    0: Access.NONE,
    HV_MAP_GPA_READABLE: Access.READ,
    _READ_WRITE: Access.READ | Access.WRITE,
    HV_MAP_GPA_READABLE | _EXECUTE: Access.READ | Access.EXECUTE,
    _READ_WRITE | _EXECUTE: Access.ALL,
    # Without MBEC kernel-mode execute governs both modes.
    HV_MAP_GPA_READABLE | HV_MAP_GPA_KERNEL_EXECUTABLE: Access.READ | Access.EXECUTE,
    _READ_WRITE | HV_MAP_GPA_KERNEL_EXECUTABLE: Access.ALL,
    HV_MAP_GPA_READABLE | HV_MAP_GPA_USER_EXECUTABLE: Access.READ,
    _READ_WRITE | HV_MAP_GPA_USER_EXECUTABLE: Access.READ | Access.WRITE,
}
"""The combinations of read, write and execute that VSM has; others are invalid."""


def dispatch(vp: Vp, level: int, vcpu: Vcpu, exit_: Hyperv) -> None:
    """Answer a hypercall that exited to user space."""
    if exit_.code == HvCallCode.HvCallVtlCall:
        _vtl_call(vp, level, vcpu, exit_)
        return
    if exit_.code == HvCallCode.HvCallVtlReturn:
        _vtl_return(vp, level, vcpu, exit_)
        return
    call = decode_exit(exit_, vcpu.vm.memory)
    if call.status:
        call.result(call.status)
        return
    if exit_.code == HvCallCode.HvCallStartVirtualProcessor and startup.intercepted(vp, level, vcpu, exit_):
        return
    handler = HANDLERS.get(exit_.code)
    if handler is None:
        call.result(HvStatus.INVALID_HYPERCALL_CODE)
        return
    status, done = handler(vp, level, call)
    call.result(status, done)


def _own_partition(partition_id: int) -> bool:
    return partition_id == HV_PARTITION_ID_SELF


# --- switches -------------------------------------------------------------------------------------------------------


def _undefined(vcpu: Vcpu, exit_: Hyperv) -> None:
    exit_.retry = True
    vcpu.queue_exception(Vector.UD)


def _finish_switch(vcpu: Vcpu, exit_: Hyperv) -> None:
    """Move RIP past the instruction; the caller's registers stay as they are."""
    exit_.complete = False
    again = vcpu.complete_exit()
    assert again is None


def _vtl_call(vp: Vp, level: int, vcpu: Vcpu, exit_: Hyperv) -> None:
    target = vp.next_higher(level)
    if target is None or exit_.input_gpa:
        _undefined(vcpu, exit_)
        return
    _finish_switch(vcpu, exit_)
    vp.switch(level, target, HvVtlEntryReason.HvVtlEntryVtlCall)


def _vtl_return(vp: Vp, level: int, vcpu: Vcpu, exit_: Hyperv) -> None:
    target = vp.next_lower(level)
    regs = vcpu.engine.regs
    control = exit_.input_gpa
    if target is None or control & ~HV_VTL_RETURN_FAST:
        _undefined(vcpu, exit_)
        return
    vp.waits.answer(vcpu, exit_)
    _finish_switch(vcpu, exit_)
    if not control & HV_VTL_RETURN_FAST:
        assist = vcpu.hv.assist
        if vcpu.is_64bit():
            regs.rax, regs.rcx = assist.return_registers_64()
        else:
            regs.rax, regs.rcx, regs.rdx = assist.return_registers_32()
    vp.switch(level, target)


# --- enabling VTLs --------------------------------------------------------------------------------------------------


def _enable_partition_vtl(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = io.HV_INPUT_ENABLE_PARTITION_VTL.unpack_from(call.data)
    partition = vp.partition
    target = request.TargetVtl
    if not _own_partition(request.TargetPartitionId):
        return HvStatus.INVALID_PARTITION_ID, 0
    # The capability mask offers no MBEC, shadow stacks or paging verification: every flag is refused.
    if not 0 < target <= partition.maximum_vtl or request.Flags or any(request.RsvdZ):
        return HvStatus.INVALID_PARAMETER, 0
    with partition.lock:
        if target in partition.vtls:
            return HvStatus.VTL_ALREADY_ENABLED, 0
        if target > level and level != partition.highest_below(target):
            return HvStatus.ACCESS_DENIED, 0
        partition.enable_vtl(target)
    return HvStatus.SUCCESS, 0


def _enable_vp_vtl(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = io.HV_INPUT_ENABLE_VP_VTL.unpack_from(call.data)
    partition = vp.partition
    target = request.TargetVtl
    if not _own_partition(request.TargetPartitionId):
        return HvStatus.INVALID_PARTITION_ID, 0
    other = target_vp(vp, request.VpIndex)
    if other is None:
        return HvStatus.INVALID_VP_INDEX, 0
    if not 0 < target <= partition.maximum_vtl or any(request.RsvdZ):
        return HvStatus.INVALID_PARAMETER, 0
    with partition.lock:
        if target not in partition.vtls:
            return HvStatus.INVALID_VTL_STATE, 0
        if target in other.vcpus:
            return HvStatus.VTL_ALREADY_ENABLED, 0
        if target > level and level != partition.highest_on_any_vp():
            # Only the highest VTL there is may put one above itself; that one enables itself on the other processors.
            return HvStatus.ACCESS_DENIED, 0
        state = context.decode(request.VpVtlContext, cr4_allowed(vp.vcpus[level]))
        if state is None:
            return HvStatus.INVALID_REGISTER_VALUE, 0
        vcpu = partition.create_vcpu(other.index, target)
        state.apply(vcpu)
        other.add_vcpu(vcpu, target)
    # What the new VTL intercepts begins here on this processor.
    partition.wait_for_intercepts(range(target))
    return HvStatus.SUCCESS, 0


# --- protection -----------------------------------------------------------------------------------------------------


def _modify_vtl_protection_mask(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = io.HV_INPUT_MODIFY_VTL_PROTECTION_MASK.unpack_from(call.data)
    partition = vp.partition
    start = call.rep_start
    if not _own_partition(request.TargetPartitionId):
        return HvStatus.INVALID_PARTITION_ID, start
    access = ACCESS_OF_MAP_FLAGS.get(request.MapFlags)
    target = input_vtl(request.TargetVtl, level)
    if access is None or target is None or any(request.RsvdZ):
        return HvStatus.INVALID_PARAMETER, start
    if target > level or level == 0:
        return HvStatus.ACCESS_DENIED, start
    # The caller's own VTL, or none, means every lower one.
    targets = range(level) if target == level else (target,)
    with partition.lock:
        if not HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION.get(partition.vtls[level].config):
            return HvStatus.ACCESS_DENIED, start
        status, done = HvStatus.SUCCESS, call.rep_count
        for index in range(start, call.rep_count):
            gpa = int.from_bytes(call.element(index), "little") * HV_PAGE_SIZE
            if gpa >= GPA_LIMIT or not partition.is_ram(gpa):
                status, done = HvStatus.INVALID_PARAMETER, index
                break
            for lower in targets:
                partition.protect(level, lower, gpa, HV_PAGE_SIZE, access)
    # The caller may rely on what it has taken away, on every processor.
    partition.wait_for_memory(targets)
    return status, done


# --- translation ----------------------------------------------------------------------------------------------------


def _translate_virtual_address(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = TranslateRequest.of(call)
    status, other, target = processor_and_vtl(vp, level, request.partition_id, request.vp_index, request.input_vtl)
    if not status:
        status = translate.translate(vp, level, other, target, call, request)
    return status, 0


# --- registers ------------------------------------------------------------------------------------------------------


def _get_vp_registers(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = io.HV_INPUT_GET_VP_REGISTERS.unpack_from(call.data)
    status, other, target = processor_and_vtl(
        vp, level, request.PartitionId, request.VpIndex, request.TargetVtl, malformed=any(request.RsvdZ)
    )
    if status:
        return status, call.rep_start
    for index in range(call.rep_start, call.rep_count):
        name = int.from_bytes(call.element(index), "little")
        value = vp_registers.get(vp, other, target, name)
        if isinstance(value, HvStatus):
            return value, index
        call.write_element(index, value.to_bytes(16, "little"))
    return HvStatus.SUCCESS, call.rep_count


def _set_vp_registers(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    request = io.HV_INPUT_GET_VP_REGISTERS.unpack_from(call.data)
    status, other, target = processor_and_vtl(
        vp, level, request.PartitionId, request.VpIndex, request.TargetVtl, malformed=any(request.RsvdZ)
    )
    if status:
        return status, call.rep_start
    for index in range(call.rep_start, call.rep_count):
        pair = io.HV_REGISTER_ASSOC.unpack_from(call.element(index))
        if any(pair.RsvdZ):
            return HvStatus.INVALID_PARAMETER, index
        value = int.from_bytes(pair.RegisterValue, "little")
        status = vp_registers.set(vp, other, target, pair.RegisterName, value)
        if status:
            return status, index
    return HvStatus.SUCCESS, call.rep_count


HANDLERS: Final[dict[int, Handler]] = {
    HvCallCode.HvCallModifyVtlProtectionMask: _modify_vtl_protection_mask,
    HvCallCode.HvCallEnablePartitionVtl: _enable_partition_vtl,
    HvCallCode.HvCallEnableVpVtl: _enable_vp_vtl,
    HvCallCode.HvCallStartVirtualProcessor: startup.start_virtual_processor,
    HvCallCode.HvCallGetVpRegisters: _get_vp_registers,
    HvCallCode.HvCallSetVpRegisters: _set_vp_registers,
    HvCallCode.HvCallTranslateVirtualAddress: _translate_virtual_address,
    HvCallCode.HvCallTranslateVirtualAddressEx: _translate_virtual_address,
    HvCallCode.HvCallSendSyntheticClusterIpi: other_vtls.send_ipi,
    HvCallCode.HvCallSendSyntheticClusterIpiEx: other_vtls.send_ipi,
    HvCallCode.HvCallFlushVirtualAddressSpace: other_vtls.flush,
    HvCallCode.HvCallFlushVirtualAddressList: other_vtls.flush,
    HvCallCode.HvCallFlushVirtualAddressSpaceEx: other_vtls.flush,
    HvCallCode.HvCallFlushVirtualAddressListEx: other_vtls.flush,
    HvCallCode.HvCallGetVpIndexFromApicId: processor_ids.get_vp_index_from_apic_id,
    HvCallCode.HvCallGetVpSetFromMda: processor_ids.get_vp_set_from_mda,
    HvCallCode.HvCallCheckSparseGpaPageVtlAccess: vtl_access.check_sparse_gpa_page_vtl_access,
    HvCallCode.HvCallRetargetDeviceInterrupt: device_interrupts.retarget_device_interrupt,
    HvCallCode.HvCallCreatePort: port_calls.create_port,
    HvCallCode.HvCallDeletePort: port_calls.delete_port,
    HvCallCode.HvCallConnectPort: port_calls.connect_port,
    HvCallCode.HvCallDisconnectPort: port_calls.disconnect_port,
    HvCallCode.HvCallPostMessage: port_calls.post_message,
    HvCallCode.HvCallSignalEvent: port_calls.signal_event,
    HvCallCode.HvCallPostMessageDirect: port_calls.post_message_direct,
    HvCallCode.HvCallSignalEventDirect: port_calls.signal_event_direct,
    HvCallCode.HvCallAssertVirtualInterrupt: assert_interrupt.assert_virtual_interrupt,
    HvCallCode.HvExtCallQueryCapabilities: extended_calls.query_capabilities,
    HvCallCode.HvExtCallGetBootZeroedMemory: extended_calls.get_boot_zeroed_memory,
    HvCallCode.HvCallInstallIntercept: install.install,
    HvCallCode.HvCallRegisterInterceptResult: install.register_result,
    HvCallCode.HvCallUnregisterInterceptResult: install.unregister_result,
    HvCallCode.HvCallCheckForIoIntercept: install.check_for_io,
    HvCallCode.HvCallMapVpStatePage: state_pages.map_vp_state_page,
    HvCallCode.HvCallUnmapVpStatePage: state_pages.unmap_vp_state_page,
}
