"""Virtual Secure Mode's own registers (TLFS, "Virtual Secure Mode": status, capabilities, partition configuration)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Access
from vtlkit.hvdef import vsm
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import Vcpu
from vtlkit.vmm.vsm import startup
from vtlkit.vmm.vsm.registers.table import Register, Scope

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


def _code_page_offsets(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    hv = vcpu.vm.hv
    return hv.code_page_offsets(is_64bit=vcpu.is_64bit())


def _vp_status(vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    return vsm.HV_VSM_VP_ACTIVE_VTL.make(vp.active.load()) | vsm.HV_VSM_VP_ENABLED_VTL_SET.make(vp.enabled_set())


def _partition_status(vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    partition = vp.partition
    return vsm.HV_VSM_PARTITION_ENABLED_VTL_SET.make(partition.enabled_set()) | vsm.HV_VSM_PARTITION_MAXIMUM_VTL.make(
        partition.maximum_vtl
    )


def _capabilities(_vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    """DR6 is private, there is no MBEC; start-up of lower VTLs can be denied."""
    return vsm.HV_VSM_CAPABILITIES_DENY_LOWER_VTL_STARTUP.make(1)


def _get_partition_config(vp: Vp, level: int, _vcpu: Vcpu) -> int:
    return vp.partition.vtls[level].config


_CONFIG_WRITABLE: Final = (
    vsm.HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION.mask
    | vsm.HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK.mask
    | vsm.HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET.mask
    | vsm.HV_VSM_PARTITION_CONFIG_DENY_LOWER_VTL_STARTUP.mask
    | vsm.HV_VSM_PARTITION_CONFIG_INTERCEPT_VP_STARTUP.mask
)


def _set_partition_config(vp: Vp, level: int, _vcpu: Vcpu, value: int) -> HvStatus:
    if level == 0:
        return HvStatus.ACCESS_DENIED
    if value & ~_CONFIG_WRITABLE:
        return HvStatus.INVALID_REGISTER_VALUE
    with vp.partition.lock:
        status = _configure(vp, level, value)
    # A default mask counts from here on, on every processor.
    vp.partition.wait_for_memory(range(level))
    return status


def _configure(vp: Vp, level: int, value: int) -> HvStatus:
    """The caller holds the partition's lock."""
    from vtlkit.vmm.vsm.hypercalls import ACCESS_OF_MAP_FLAGS

    enable = vsm.HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION
    mask = vsm.HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK
    partition = vp.partition
    vtl = partition.vtls[level]
    if enable.get(vtl.config):
        # Protection is enabled once: the bit stays, and a different default mask changes nothing.
        value = mask.put(enable.put(value, 1), mask.get(vtl.config))
    elif enable.get(value):
        access = ACCESS_OF_MAP_FLAGS.get(mask.get(value))
        if access is None:
            return HvStatus.INVALID_REGISTER_VALUE
        if access is not Access.ALL:
            for lower in range(level):
                for gpa, size in partition.ram_ranges():
                    partition.protect(level, lower, gpa, size, access)
    vtl.config = value
    startup.configuration_changed(partition)
    return HvStatus.SUCCESS


def _get_vina(vp: Vp, level: int, _vcpu: Vcpu) -> int | HvStatus:
    return vp.vina.read(level) if level else HvStatus.INVALID_PARAMETER


def _set_vina(vp: Vp, level: int, vcpu: Vcpu, value: int) -> HvStatus:
    return vp.vina.write(level, vcpu, value)


REGISTERS: Final[Mapping[int, Register]] = {
    Name.HvRegisterVsmCodePageOffsets: Register(_code_page_offsets),
    Name.HvRegisterVsmVpStatus: Register(_vp_status, scope=Scope.PARTITION),
    Name.HvRegisterVsmPartitionStatus: Register(_partition_status, scope=Scope.PARTITION),
    Name.HvRegisterVsmCapabilities: Register(_capabilities, scope=Scope.PARTITION),
    Name.HvRegisterVsmVina: Register(_get_vina, _set_vina),
    Name.HvRegisterVsmPartitionConfig: Register(_get_partition_config, _set_partition_config, Scope.PARTITION),
}
