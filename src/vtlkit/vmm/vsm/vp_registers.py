"""Virtual processor registers by name: HvCallGetVpRegisters and HvCallSetVpRegisters.

Each register is one entry of a table: how it is read, how it is written, what may be written. VSM's own registers
belong to the partition, the processor or a VTL of it; the architectural ones are the vCPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.engine.api import Access
from vtlkit.hvdef import vsm
from vtlkit.hvdef.register_values import (
    HV_PENDING_EVENT_PENDING,
    HV_PENDING_EVENT_TYPE,
    HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE,
    HV_X64_PENDING_EXCEPTION_EVENT,
    HvX64PendingEventType,
)
from vtlkit.hvdef.registers import HvRegisterName as Name
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.vsm import HV_X64_SEGMENT_REGISTER, HV_X64_TABLE_REGISTER
from vtlkit.kvm.uapi import Vcpu
from vtlkit.x86 import msr
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import is_canonical
from vtlkit.x86.registers import (
    CR4_LA57,
    EFER_LMA,
    RFLAGS_FIXED,
    RFLAGS_VALID,
    RFLAGS_VM,
    DescriptorTable,
    Segment,
    Sregs,
)
from vtlkit.x86.segments import access_rights_to_attributes, attributes_to_access_rights

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

Get: TypeAlias = Callable[["Vp", int, Vcpu], int]
Set: TypeAlias = Callable[["Vp", int, Vcpu, int], HvStatus]

_U64: Final = 0xFFFFFFFFFFFFFFFF
_ATTRIBUTES_RESERVED: Final = 0xF00


@contextmanager
def _stopped(caller: Vp, vp: Vp, vcpu: Vcpu) -> Iterator[None]:
    """The vCPU does not run, and no other task writes it, meanwhile; another processor's leaves the guest. Blocks."""
    if vp is caller:
        # The caller's task is this one, and the processor's other VTLs are inactive.
        with vcpu.mutex:
            yield
        return
    with vp.stopped(), vcpu.mutex:
        yield


def get(caller: Vp, vp: Vp, level: int, name: int) -> int | HvStatus:
    """The register's value, 128 bits. `caller` is the processor whose task this is. May block."""
    getter = _GETTERS.get(name)
    if getter is None:
        return HvStatus.INVALID_PARAMETER
    if name not in _SHARED:
        vcpu = vp.vcpus[level]
        with _stopped(caller, vp, vcpu):
            return getter(vp, level, vcpu)
    while True:
        vcpu, token = vp.shared_state()
        with _stopped(caller, vp, vcpu):
            value = getter(vp, level, vcpu)
        if vp.shared_state_stayed(token):
            return value


def set(caller: Vp, vp: Vp, level: int, name: int, value: int) -> HvStatus:  # noqa: A001
    """Write the register; as `get`."""
    setter = _SETTERS.get(name)
    if setter is None:
        return HvStatus.ACCESS_DENIED if name in _GETTERS else HvStatus.INVALID_PARAMETER
    if name == Name.HvRegisterVsmPartitionConfig:
        # The partition's, under its lock: no vCPU has to stand still for it.
        status = setter(vp, level, vp.vcpus[level], value)
        # A default mask counts from here on, on every processor.
        vp.partition.wait_for_memory(range(level))
        return status
    if name not in _SHARED:
        vcpu = vp.vcpus[level]
        with _stopped(caller, vp, vcpu):
            status = setter(vp, level, vcpu, value) if vcpu.engine.at_boundary else HvStatus.INVALID_VP_STATE
        if name == Name.HvRegisterPendingEvent0 and not status:
            _deliver_fault_address(caller, vp, level, value)
        return status
    while True:
        vcpu, token = vp.shared_state()
        with _stopped(caller, vp, vcpu):
            status = setter(vp, level, vcpu, value) if vcpu.engine.at_boundary else HvStatus.INVALID_VP_STATE
        if status or vp.shared_state_stayed(token):
            return status


# --- VSM registers --------------------------------------------------------------------------------------------------


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
    """DR6 is private, there is no MBEC, and start-up of lower VTLs cannot be denied yet."""
    return 0


def _vp_index(vp: Vp, _level: int, _vcpu: Vcpu) -> int:
    return vp.index


def _get_partition_config(vp: Vp, level: int, _vcpu: Vcpu) -> int:
    return vp.partition.vtls[level].config


_CONFIG_WRITABLE: Final = (
    vsm.HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION.mask
    | vsm.HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK.mask
    | vsm.HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET.mask
)


def _set_partition_config(vp: Vp, level: int, _vcpu: Vcpu, value: int) -> HvStatus:
    from vtlkit.vmm.vsm.hypercalls import ACCESS_OF_MAP_FLAGS

    if level == 0:
        return HvStatus.ACCESS_DENIED
    if value & ~_CONFIG_WRITABLE:
        return HvStatus.INVALID_REGISTER_VALUE
    enable = vsm.HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION
    mask = vsm.HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK
    partition = vp.partition
    with partition.lock:
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
    return HvStatus.SUCCESS


def _get_pending_event0(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
    event = vcpu.events.exception
    if event is None:
        return 0
    flags = HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE if event.error_code is not None else 0
    header = HV_PENDING_EVENT_PENDING.make(1) | HV_PENDING_EVENT_TYPE.make(
        HvX64PendingEventType.HvX64PendingEventException
    )
    return int.from_bytes(
        HV_X64_PENDING_EXCEPTION_EVENT(header, flags, event.vector, event.error_code or 0).pack(), "little"
    )


def _set_pending_event0(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    event = HV_X64_PENDING_EXCEPTION_EVENT.unpack(value.to_bytes(16, "little"))
    if not HV_PENDING_EVENT_PENDING.get(event.Header):
        vcpu.events.exception = None
        return HvStatus.SUCCESS
    known = HV_PENDING_EVENT_PENDING.mask | HV_PENDING_EVENT_TYPE.mask
    if (
        event.Header & ~known
        or HV_PENDING_EVENT_TYPE.get(event.Header) != HvX64PendingEventType.HvX64PendingEventException
        or event.Vector > 31
        or event.Flags & ~HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE
    ):
        return HvStatus.INVALID_REGISTER_VALUE
    error_code = event.ErrorCode if event.Flags & HV_PENDING_EXCEPTION_DELIVER_ERROR_CODE else None
    vcpu.events.exception = None
    vcpu.queue_exception(event.Vector, error_code)
    return HvStatus.SUCCESS


def _deliver_fault_address(caller: Vp, vp: Vp, level: int, value: int) -> None:
    """The address of a page fault to be delivered goes to CR2, which is one register of all VTLs."""
    event = HV_X64_PENDING_EXCEPTION_EVENT.unpack(value.to_bytes(16, "little"))
    if HV_PENDING_EVENT_PENDING.get(event.Header) and event.Vector == Vector.PF:
        set(caller, vp, level, Name.HvX64RegisterCr2, event.ExceptionParameter)


# --- architectural registers ----------------------------------------------------------------------------------------


def _general(field: str, valid: Callable[[Vcpu, int], bool]) -> tuple[Get, Set]:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        value: int = getattr(vcpu.get_regs(), field)
        return value

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        if value > _U64 or not valid(vcpu, value):
            return HvStatus.INVALID_REGISTER_VALUE
        # This one alone: its owner may be writing another one, outside the guest.
        if field == "rflags":
            vcpu.engine.rflags = value | RFLAGS_FIXED
        else:
            setattr(vcpu.engine.regs, field, value)
        return HvStatus.SUCCESS

    return read, write


def _any(_vcpu: Vcpu, _value: int) -> bool:
    return True


def _canonical(vcpu: Vcpu, value: int) -> bool:
    return is_canonical(value, bool(vcpu.get_sregs().cr4 & CR4_LA57))


def _flags_valid(vcpu: Vcpu, value: int) -> bool:
    virtual_8086_in_long_mode = value & RFLAGS_VM and vcpu.get_sregs().efer & EFER_LMA
    return not value & ~RFLAGS_VALID and not virtual_8086_in_long_mode


def _control(field: str) -> Get:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        value: int = getattr(vcpu.get_sregs(), field)
        return value

    return read


def _set_cr2(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
    if value > _U64:
        return HvStatus.INVALID_REGISTER_VALUE
    sregs = vcpu.get_sregs()
    sregs.cr2 = value
    vcpu.set_sregs(sregs)
    return HvStatus.SUCCESS


def _segment(field: str) -> tuple[Get, Set]:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        segment: Segment = getattr(vcpu.get_sregs(), field)
        packed = HV_X64_SEGMENT_REGISTER(
            segment.base, segment.limit, segment.selector, attributes_to_access_rights(segment.attributes)
        ).pack()
        return int.from_bytes(packed, "little")

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        register = HV_X64_SEGMENT_REGISTER.unpack(value.to_bytes(16, "little"))
        if register.Attributes & _ATTRIBUTES_RESERVED or not _canonical(vcpu, register.Base):
            return HvStatus.INVALID_REGISTER_VALUE
        sregs: Sregs = vcpu.get_sregs()
        attributes = access_rights_to_attributes(register.Attributes)
        setattr(sregs, field, Segment(register.Selector, register.Base, register.Limit, attributes))
        vcpu.set_sregs(sregs)
        return HvStatus.SUCCESS

    return read, write


def _table(field: str) -> tuple[Get, Set]:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        table: DescriptorTable = getattr(vcpu.get_sregs(), field)
        return int.from_bytes(HV_X64_TABLE_REGISTER(Limit=table.limit, Base=table.base).pack(), "little")

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        register = HV_X64_TABLE_REGISTER.unpack(value.to_bytes(16, "little"))
        if not _canonical(vcpu, register.Base):
            return HvStatus.INVALID_REGISTER_VALUE
        sregs: Sregs = vcpu.get_sregs()
        setattr(sregs, field, DescriptorTable(register.Base, register.Limit))
        vcpu.set_sregs(sregs)
        return HvStatus.SUCCESS

    return read, write


def _model_specific(index: int) -> tuple[Get, Set]:
    def read(_vp: Vp, _level: int, vcpu: Vcpu) -> int:
        value = vcpu.get_msr(index)
        assert value is not None
        return value

    def write(_vp: Vp, _level: int, vcpu: Vcpu, value: int) -> HvStatus:
        # The rules are those of the guest's own WRMSR.
        accepted = value <= _U64 and vcpu.set_guest_msr(index, value)
        return HvStatus.SUCCESS if accepted else HvStatus.INVALID_REGISTER_VALUE

    return read, write


_GENERAL: Final = {
    Name.HvX64RegisterRax: "rax",
    Name.HvX64RegisterRcx: "rcx",
    Name.HvX64RegisterRdx: "rdx",
    Name.HvX64RegisterRbx: "rbx",
    Name.HvX64RegisterRsp: "rsp",
    Name.HvX64RegisterRbp: "rbp",
    Name.HvX64RegisterRsi: "rsi",
    Name.HvX64RegisterRdi: "rdi",
    **{Name[f"HvX64RegisterR{number}"]: f"r{number}" for number in range(8, 16)},
    Name.HvX64RegisterRip: "rip",
    Name.HvX64RegisterRflags: "rflags",
}
_PRIVATE_GENERAL: Final = (Name.HvX64RegisterRsp, Name.HvX64RegisterRip, Name.HvX64RegisterRflags)
_SHARED: Final = frozenset(_GENERAL) - frozenset(_PRIVATE_GENERAL) | {Name.HvX64RegisterCr2}
"""Registers that all VTLs of a processor have in common."""
_RULES: Final = {Name.HvX64RegisterRip: _canonical, Name.HvX64RegisterRflags: _flags_valid}
_SEGMENTS: Final = {
    Name.HvX64RegisterEs: "es",
    Name.HvX64RegisterCs: "cs",
    Name.HvX64RegisterSs: "ss",
    Name.HvX64RegisterDs: "ds",
    Name.HvX64RegisterFs: "fs",
    Name.HvX64RegisterGs: "gs",
    Name.HvX64RegisterLdtr: "ldt",
    Name.HvX64RegisterTr: "tr",
}
_MSRS: Final = {
    Name.HvX64RegisterKernelGsBase: msr.MSR_KERNEL_GS_BASE,
    Name.HvX64RegisterPat: msr.MSR_IA32_CR_PAT,
    Name.HvX64RegisterSysenterCs: msr.MSR_IA32_SYSENTER_CS,
    Name.HvX64RegisterSysenterEip: msr.MSR_IA32_SYSENTER_EIP,
    Name.HvX64RegisterSysenterEsp: msr.MSR_IA32_SYSENTER_ESP,
    Name.HvX64RegisterStar: msr.MSR_STAR,
    Name.HvX64RegisterLstar: msr.MSR_LSTAR,
    Name.HvX64RegisterCstar: msr.MSR_CSTAR,
    Name.HvX64RegisterSfmask: msr.MSR_SYSCALL_MASK,
}

_GETTERS: Final[dict[int, Get]] = {
    Name.HvRegisterVsmCodePageOffsets: _code_page_offsets,
    Name.HvRegisterVsmVpStatus: _vp_status,
    Name.HvRegisterVsmPartitionStatus: _partition_status,
    Name.HvRegisterVsmCapabilities: _capabilities,
    Name.HvRegisterVsmPartitionConfig: _get_partition_config,
    Name.HvRegisterPendingEvent0: _get_pending_event0,
    Name.HvRegisterVpIndex: _vp_index,
    Name.HvX64RegisterCr0: _control("cr0"),
    Name.HvX64RegisterCr2: _control("cr2"),
    Name.HvX64RegisterCr3: _control("cr3"),
    Name.HvX64RegisterCr4: _control("cr4"),
    Name.HvX64RegisterCr8: _control("cr8"),
    Name.HvX64RegisterEfer: _control("efer"),
    Name.HvX64RegisterIdtr: _table("idt")[0],
    Name.HvX64RegisterGdtr: _table("gdt")[0],
    **{name: _general(field, _any)[0] for name, field in _GENERAL.items()},
    **{name: _segment(field)[0] for name, field in _SEGMENTS.items()},
    **{name: _model_specific(number)[0] for name, number in _MSRS.items()},
}
_SETTERS: Final[dict[int, Set]] = {
    Name.HvRegisterVsmPartitionConfig: _set_partition_config,
    Name.HvRegisterPendingEvent0: _set_pending_event0,
    Name.HvX64RegisterCr2: _set_cr2,
    Name.HvX64RegisterIdtr: _table("idt")[1],
    Name.HvX64RegisterGdtr: _table("gdt")[1],
    **{name: _general(field, _RULES.get(name, _any))[1] for name, field in _GENERAL.items()},
    **{name: _segment(field)[1] for name, field in _SEGMENTS.items()},
    **{name: _model_specific(number)[1] for name, number in _MSRS.items()},
}
