"""HvCallInstallIntercept, HvCallRegisterInterceptResult and its undoing, HvCallCheckForIoIntercept.

A VTL above 0 calls them about the lower VTLs of its own partition. What TLFS and hypervisors leave open is decided in
docs/design/intercepts.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vtlkit.engine.api import PORT_BITMAP_SIZE, touches_port
from vtlkit.hvdef import intercepts as io
from vtlkit.hvdef.identifiers import HV_ANY_VP, HV_PARTITION_ID_SELF
from vtlkit.hvdef.intercepts import HvInterceptType as Type
from vtlkit.hvdef.intercepts import HvUnimplementedMsrAction
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import CpuidOverride, HypercallParameters, UserIntercepts
from vtlkit.vmm.vsm.intercepts import wishes
from vtlkit.vmm.vsm.intercepts.wishes import Results
from vtlkit.vmm.vsm.targets import processor_and_vtl, target_vp
from vtlkit.x86 import apic as regs
from vtlkit.x86.exceptions import Vector

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp

_READ: Final = io.HV_INTERCEPT_ACCESS_MASK_READ
_WRITE: Final = io.HV_INTERCEPT_ACCESS_MASK_WRITE
_EXECUTE: Final = io.HV_INTERCEPT_ACCESS_MASK_EXECUTE
_PORT_MAX: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
_VECTORS: Final = frozenset(range(32)) - {Vector.NMI}
_APIC_REGISTERS: Final = (regs.APIC_LVT0, regs.APIC_LVT1, regs.APIC_SPIV, regs.APIC_LDR, regs.APIC_DFR)
"""By bit of the APIC write mask."""

_Change = Callable[[UserIntercepts, int, int], "UserIntercepts | None"]
"""(what the VTL has installed, parameter, access mask) -> what it then has; None if the parameter is none"""


def install(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallInstallIntercept."""
    request = io.HV_INPUT_INSTALL_INTERCEPT.unpack_from(call.data)
    partition = vp.partition
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID, 0
    if level == 0:
        return HvStatus.ACCESS_DENIED, 0
    known = _TYPES.get(request.InterceptType)
    if known is None or request.AccessType & ~known[0]:
        return HvStatus.INVALID_PARAMETER, 0
    if request.InterceptType in _PORT_TYPES and not vp.vcpus[level].engine.intercepts_ports:
        return HvStatus.FEATURE_UNAVAILABLE, 0
    if request.InterceptType in _INSTRUCTION_TYPES and not vp.vcpus[level].engine.intercepts_instructions:
        return HvStatus.FEATURE_UNAVAILABLE, 0
    with partition.lock:
        vtl = partition.vtls[level]
        changed = known[1](vtl.installed, request.InterceptParameter, request.AccessType)
        if changed is None:
            return HvStatus.INVALID_PARAMETER, 0
        vtl.installed = changed
        wishes.apply(partition)
    # The caller may rely on it, on every processor.
    partition.wait_for_intercepts(range(level))
    return HvStatus.SUCCESS, 0


def _port(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
    return None if parameter > _PORT_MAX else _ports(installed, parameter, parameter, access)


def _port_range(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
    base = io.HV_INTERCEPT_PARAMETER_PORT_BASE.get(parameter)
    end = io.HV_INTERCEPT_PARAMETER_PORT_END.get(parameter)
    return None if parameter > _U32 or base > end else _ports(installed, base, end, access)


def _ports(installed: UserIntercepts, base: int, end: int, access: int) -> UserIntercepts:
    def changed(bitmap: bytes | None, wanted: int) -> bytes | None:
        bits = 0 if bitmap is None else int.from_bytes(bitmap, "little")
        span = (1 << end - base + 1) - 1 << base
        bits = bits | span if wanted else bits & ~span
        return bits.to_bytes(PORT_BITMAP_SIZE, "little") if bits else None

    return replace(
        installed,
        port_reads=changed(installed.port_reads, access & _READ),
        port_writes=changed(installed.port_writes, access & _WRITE),
    )


def _msr(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
    if parameter > _U32:
        return None
    reads, writes = installed.msr_reads - {parameter}, dict(installed.msr_writes)
    writes.pop(parameter, None)
    if access & _READ:
        reads |= {parameter}
    if access & _WRITE:
        writes[parameter] = None
    return replace(installed, msr_reads=reads, msr_writes=writes)


def _cpuid(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
    if parameter > _U32:
        return None
    others = installed.cpuid - {parameter}
    return replace(installed, cpuid=others | {parameter} if access else others)


def _exception(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
    if parameter not in _VECTORS:
        return None
    others = installed.exceptions & ~(1 << parameter)
    return replace(installed, exceptions=others | bool(access) << parameter)


def _apic_write(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
    if parameter >> len(_APIC_REGISTERS):
        return None
    named = frozenset(register for bit, register in enumerate(_APIC_REGISTERS) if parameter >> bit & 1)
    others = installed.apic_writes - named
    return replace(installed, apic_writes=others | named if access else others)


def _switch(field: str) -> _Change:
    """A type without a parameter."""

    def change(installed: UserIntercepts, parameter: int, access: int) -> UserIntercepts | None:
        changed: dict[str, Any] = {field: bool(access)}
        return None if parameter else replace(installed, **changed)

    return change


_ANY: Final = _READ | _WRITE | _EXECUTE
_TYPES: Final[dict[int, tuple[int, _Change]]] = {
    Type.HvInterceptTypeX64IoPort: (_READ | _WRITE, _port),
    Type.HvInterceptTypeX64IoPortRange: (_READ | _WRITE, _port_range),
    Type.HvInterceptTypeX64Msr: (_READ | _WRITE, _msr),
    Type.HvInterceptTypeX64Cpuid: (_ANY, _cpuid),
    Type.HvInterceptTypeX64GlobalCpuid: (_ANY, _switch("cpuid_all")),
    Type.HvInterceptTypeException: (_ANY, _exception),
    Type.HvInterceptTypeHypercall: (_ANY, _switch("hypercalls")),
    Type.HvInterceptTypeX64ApicInitSipi: (_ANY, _switch("init_sipi")),
    Type.HvInterceptTypeX64ApicEoi: (_ANY, _switch("eoi")),
    Type.HvInterceptTypeX64ApicWrite: (_ANY, _apic_write),
}
"""Type -> access bits that it knows, and what installing changes. The others have nothing to intercept here."""
_PORT_TYPES: Final = (Type.HvInterceptTypeX64IoPort, Type.HvInterceptTypeX64IoPortRange)
_INSTRUCTION_TYPES: Final = (
    Type.HvInterceptTypeX64Cpuid,
    Type.HvInterceptTypeX64GlobalCpuid,
    Type.HvInterceptTypeException,
)


# --- results --------------------------------------------------------------------------------------------------------


def register_result(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallRegisterInterceptResult: what CPUID answers lower VTLs, and what an MSR that is not there does."""
    return _change_results(vp, level, call.data, _REGISTER), 0


def unregister_result(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallUnregisterInterceptResult; NOT_FOUND if one of the processors has nothing like it registered."""
    return _change_results(vp, level, call.data, _UNREGISTER), 0


_Edit = Callable[[Results], HvStatus]


def _change_results(vp: Vp, level: int, data: bytes, by_type: dict[int, Callable[[bytes], _Edit | None]]) -> HvStatus:
    request = io.HV_INPUT_REGISTER_INTERCEPT_RESULT.unpack_from(data)
    partition = vp.partition
    if request.PartitionId != HV_PARTITION_ID_SELF:
        return HvStatus.INVALID_PARTITION_ID
    if level == 0:
        return HvStatus.ACCESS_DENIED
    one = target_vp(vp, request.VpIndex)
    if one is None and request.VpIndex != HV_ANY_VP:
        return HvStatus.INVALID_VP_INDEX
    if request.InterceptType == Type.HvInterceptTypeX64Cpuid and not vp.vcpus[level].engine.cpuid_exits:
        return HvStatus.FEATURE_UNAVAILABLE
    decode = by_type.get(request.InterceptType)
    edit = decode(data[io.HV_INPUT_REGISTER_INTERCEPT_RESULT.SIZE :]) if decode is not None else None
    if edit is None:
        return HvStatus.INVALID_PARAMETER
    status = HvStatus.SUCCESS
    with partition.lock:
        for each in partition.vps if one is None else [one]:
            status = edit(each.intercepts.results.setdefault(level, Results())) or status
            wishes.apply_to(each)
    partition.wait_for_intercepts(range(level))
    return status


def _leaf(eax: int, ecx: int, subleaf_specific: int) -> tuple[int, int | None]:
    return eax, ecx if subleaf_specific else None


def _register_cpuid(data: bytes) -> _Edit | None:
    parameters = io.HV_REGISTER_X64_CPUID_RESULT_PARAMETERS.unpack_from(data)
    if parameters.SubleafSpecific > 1 or parameters.AlwaysOverride > 1 or parameters.Padding:
        return None
    override = CpuidOverride(
        (parameters.Eax, parameters.Ebx, parameters.Ecx, parameters.Edx),
        (parameters.EaxMask, parameters.EbxMask, parameters.EcxMask, parameters.EdxMask),
        bool(parameters.AlwaysOverride),
    )

    def edit(results: Results) -> HvStatus:
        results.cpuid[_leaf(parameters.InputEax, parameters.InputEcx, parameters.SubleafSpecific)] = override
        return HvStatus.SUCCESS

    return edit


def _unregister_cpuid(data: bytes) -> _Edit | None:
    parameters = io.HV_UNREGISTER_X64_CPUID_RESULT_PARAMETERS.unpack_from(data)
    if parameters.SubleafSpecific > 1 or parameters.AlwaysOverride > 1 or parameters.Padding:
        return None

    def edit(results: Results) -> HvStatus:
        leaf = _leaf(parameters.InputEax, parameters.InputEcx, parameters.SubleafSpecific)
        return HvStatus.SUCCESS if results.cpuid.pop(leaf, None) is not None else HvStatus.NOT_FOUND

    return edit


def _directions(access: int) -> list[bool] | None:
    """Whether writes, for each direction that the mask names."""
    if not access or access & ~(_READ | _WRITE):
        return None
    return [write for write, bit in ((False, _READ), (True, _WRITE)) if access & bit]


def _register_msr(data: bytes) -> _Edit | None:
    parameters = io.HV_REGISTER_X64_MSR_RESULT_PARAMETERS.unpack_from(data)
    directions = _directions(parameters.AccessType)
    if directions is None or parameters.Action not in list(HvUnimplementedMsrAction):
        return None
    ignored = parameters.Action == HvUnimplementedMsrAction.HvUnimplementedMsrActionIgnoreWriteReadZero

    def edit(results: Results) -> HvStatus:
        for write in directions:
            results.msrs[parameters.MsrIndex, write] = ignored
        return HvStatus.SUCCESS

    return edit


def _unregister_msr(data: bytes) -> _Edit | None:
    parameters = io.HV_UNREGISTER_X64_MSR_RESULT_PARAMETERS.unpack_from(data)
    directions = _directions(parameters.AccessType)
    if directions is None:
        return None

    def edit(results: Results) -> HvStatus:
        found = [results.msrs.pop((parameters.MsrIndex, write), None) is not None for write in directions]
        return HvStatus.SUCCESS if all(found) else HvStatus.NOT_FOUND

    return edit


_REGISTER: Final[dict[int, Callable[[bytes], _Edit | None]]] = {
    Type.HvInterceptTypeX64Cpuid: _register_cpuid,
    Type.HvInterceptTypeX64Msr: _register_msr,
}
_UNREGISTER: Final[dict[int, Callable[[bytes], _Edit | None]]] = {
    Type.HvInterceptTypeX64Cpuid: _unregister_cpuid,
    Type.HvInterceptTypeX64Msr: _unregister_msr,
}


# --- questions ------------------------------------------------------------------------------------------------------


def check_for_io(vp: Vp, level: int, call: HypercallParameters) -> tuple[HvStatus, int]:
    """HvCallCheckForIoIntercept: whether some VTL above the target would be told of a port access there."""
    request = io.HV_INPUT_CHECK_FOR_IO_INTERCEPT.unpack_from(call.data)
    malformed = bool(request.Padding) or request.Size not in (1, 2, 4) or request.IsWrite > 1
    status, other, target = processor_and_vtl(
        vp, level, request.PartitionId, request.VpIndex, request.TargetVtl, malformed=malformed
    )
    if status:
        return status, 0
    with vp.partition.lock:
        wanted = wishes.union(wishes.of_vtl(other, setter) for setter in wishes.above(other, target))
    ports = wanted.port_writes if request.IsWrite else wanted.port_reads
    call.write_output(bytes([touches_port(ports, request.Port, request.Size)]))
    return HvStatus.SUCCESS, 0
