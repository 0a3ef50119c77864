"""Synthetic MSRs: for each its privilege, how it is read and how it is written (mirrors `kvm_hv_get_msr_common`,
`kvm_hv_set_msr_common` and `hv_check_msr_access` of arch/x86/kvm/hyperv.c; the values are in hvdef.msrs).

Everything here runs in the task that holds the vCPU's mutex. Registers of the whole VM are in `HvVm`, under its lock.
A read of None and a write of False are #GP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from vtlkit.hvdef import msrs
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.hvdef.synic import HV_SYNIC_FIRST_VALID_VECTOR, HV_SYNIC_VERSION
from vtlkit.kvm.hyperv.privileges import GUEST_CRASH, NPIEP, UNHALTED_TIMER
from vtlkit.kvm.hyperv.reference_time import REFERENCE_TICK_NS
from vtlkit.kvm.lapic_timer import APIC_BUS_CYCLE_NS
from vtlkit.x86.apic import APIC_EOI, APIC_ICR, APIC_ICR2, APIC_TASKPRI
from vtlkit.x86.msr import APIC_BASE_MSR

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.vcpu import HvVcpu

Read: TypeAlias = "Callable[[HvVcpu], int | None]"
Write: TypeAlias = "Callable[[HvVcpu, int], bool]"

_U32: Final = 0xFFFFFFFF
_KHZ: Final = 1000
_NS_PER_S: Final = 1_000_000_000
_TPR_RESERVED: Final = ~0xFF
_REENLIGHTENMENT_RESERVED: Final = 0xFFFEFF00
_MSR_REG_SHIFT: Final = 4


class SyntheticMsr(NamedTuple):
    """`write` None: read-only, #GP for the guest. `host_write` None: as the guest's, ignored if there is none.

    Restoring a saved machine writes every register that it has read: the host may write read-only ones, and its writes
    to what acts on the machine (EOM, ICR, ...) do nothing. The local APIC's registers are restored with the local APIC.
    """

    privilege: int
    read: Read
    write: Write | None = None
    host_write: Write | None = None


def _ignored(_hv: HvVcpu, _value: int) -> bool:
    return True


def _write_only(_hv: HvVcpu) -> int | None:
    return None


def _zero(_hv: HvVcpu) -> int:
    return 0


def _set_reset(hv: HvVcpu, value: int) -> bool:
    if value & msrs.HV_X64_MSR_RESET_RESET:
        hv.request_reset()
    return True


def _set_vp_runtime(hv: HvVcpu, value: int) -> bool:
    hv.runtime_ns = value * REFERENCE_TICK_NS
    return True


def _apic_read(hv: HvVcpu, register: int) -> int | None:
    apic = hv.vcpu.apic
    if not apic.hw_enabled:
        return None
    if apic.x2apic_mode:
        return apic.x2apic_msr_read(APIC_BASE_MSR + (register >> _MSR_REG_SHIFT))
    return apic.mmio_read(register, 4)


def _apic_write(hv: HvVcpu, register: int, value: int) -> bool:
    apic = hv.vcpu.apic
    if not apic.hw_enabled:
        return False
    if apic.x2apic_mode:
        return apic.x2apic_msr_write(APIC_BASE_MSR + (register >> _MSR_REG_SHIFT), value)
    apic.mmio_write(register, 4, value)
    return True


def _set_eoi(hv: HvVcpu, value: int) -> bool:
    return not value >> 32 and _apic_write(hv, APIC_EOI, 0)


def _get_icr(hv: HvVcpu) -> int | None:
    low = _apic_read(hv, APIC_ICR)
    if low is None or hv.vcpu.apic.x2apic_mode:
        return low
    return low | (_apic_read(hv, APIC_ICR2) or 0) << 32


def _set_icr(hv: HvVcpu, value: int) -> bool:
    if hv.vcpu.apic.x2apic_mode:
        return _apic_write(hv, APIC_ICR, value)
    return _apic_write(hv, APIC_ICR2, value >> 32) and _apic_write(hv, APIC_ICR, value & _U32)


def _get_tpr(hv: HvVcpu) -> int | None:
    return _apic_read(hv, APIC_TASKPRI)


def _set_tpr(hv: HvVcpu, value: int) -> bool:
    return not value & _TPR_RESERVED and _apic_write(hv, APIC_TASKPRI, value)


def _set_vp_assist(hv: HvVcpu, value: int) -> bool:
    hv.hv_vm.move_overlay(hv.assist.page, hv.assist.set_register(value))
    return True


def _set_scontrol(hv: HvVcpu, value: int) -> bool:
    hv.synic.set_scontrol(value)
    hv.deliver_waiting()
    return True


def _set_siefp(hv: HvVcpu, value: int) -> bool:
    hv.hv_vm.move_overlay(hv.synic.event_page, hv.synic.set_siefp(value))
    return True


def _set_simp(hv: HvVcpu, value: int) -> bool:
    hv.hv_vm.move_overlay(hv.synic.message_page, hv.synic.set_simp(value))
    hv.deliver_waiting()
    return True


def _set_eom(hv: HvVcpu, _value: int) -> bool:
    hv.deliver_waiting()
    return True


def _set_sint(hv: HvVcpu, number: int, value: int, host_initiated: bool) -> bool:
    if not hv.synic.set_sint(number, value, host_initiated=host_initiated):
        return False
    hv.deliver_waiting()
    return True


def _sint(number: int) -> SyntheticMsr:
    return SyntheticMsr(
        Privilege.AccessSynicRegs,
        lambda hv: hv.synic.sints[number],
        lambda hv, value: _set_sint(hv, number, value, False),
        lambda hv, value: _set_sint(hv, number, value, True),
    )


def _stimer(number: int, *, is_count: bool) -> SyntheticMsr:
    if is_count:
        return SyntheticMsr(
            Privilege.AccessSyntheticTimerRegs,
            lambda hv: hv.stimers[number].count,
            lambda hv, value: hv.stimers[number].set_count(value),
            lambda hv, value: hv.stimers[number].set_count(value, host_initiated=True),
        )
    return SyntheticMsr(
        Privilege.AccessSyntheticTimerRegs,
        lambda hv: hv.stimers[number].config,
        lambda hv, value: hv.stimers[number].set_config(value),
        lambda hv, value: hv.stimers[number].set_config(value, host_initiated=True),
    )


def _crash_parameter(number: int) -> SyntheticMsr:
    return SyntheticMsr(
        GUEST_CRASH,
        lambda hv: hv.hv_vm.crash_parameters[number],
        lambda hv, value: hv.hv_vm.set_crash_parameter(number, value),
    )


def _set_crash_control(hv: HvVcpu, value: int) -> bool:
    if value & msrs.HV_CRASH_CTL_CRASH_NOTIFY:
        hv.request_crash(value)
    return True


def _stored(privilege: int, index: int, write: Write) -> SyntheticMsr:
    """A register of the whole VM that is only kept, by the rules of `write`."""
    return SyntheticMsr(
        privilege,
        lambda hv: hv.hv_vm.stored_msrs.get(index, 0),
        write,
        lambda hv, value: hv.hv_vm.set_stored_msr(index, value),
    )


def _set_reenlightenment(hv: HvVcpu, value: int) -> bool:
    vector = msrs.HV_REENLIGHTENMENT_VECTOR.get(value)
    if value & _REENLIGHTENMENT_RESERVED:
        return False
    if msrs.HV_REENLIGHTENMENT_ENABLED.get(value) and vector < HV_SYNIC_FIRST_VALID_VECTOR:
        return False
    return hv.hv_vm.set_stored_msr(msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL, value)


def _set_tsc_emulation_control(hv: HvVcpu, value: int) -> bool:
    if value & ~msrs.HV_TSC_EMULATION_ENABLED:
        return False
    return hv.hv_vm.set_stored_msr(msrs.HV_X64_MSR_TSC_EMULATION_CONTROL, value)


def _set_tsc_invariant_control(hv: HvVcpu, value: int) -> bool:
    if value & ~msrs.HV_EXPOSE_INVARIANT_TSC or (hv.hv_vm.invariant_tsc_exposed and not value):
        return False
    return hv.hv_vm.set_stored_msr(msrs.HV_X64_MSR_TSC_INVARIANT_CONTROL, value)


def _set_tsc_emulation_status(_hv: HvVcpu, value: int) -> bool:
    # A guest writes 0 to end an emulation; there is none here, as the TSC never changes its rate under a guest.
    return not value


CRASH_CAPABILITIES: Final = msrs.HV_CRASH_CTL_CRASH_NOTIFY | msrs.HV_CRASH_CTL_CRASH_MESSAGE
_HYPERCALL = Privilege.AccessHypercallMsrs
_SYNIC = Privilege.AccessSynicRegs
_APIC = Privilege.AccessIntrCtrlRegs
_FREQUENCY = Privilege.AccessFrequencyRegs
_REENLIGHTENMENT = Privilege.AccessReenlightenmentControls
_UNHALTED = Privilege.AccessSyntheticTimerRegs | UNHALTED_TIMER

MSRS: Final[Mapping[int, SyntheticMsr]] = {
    msrs.HV_X64_MSR_GUEST_OS_ID: SyntheticMsr(
        _HYPERCALL, lambda hv: hv.hv_vm.guest_os_id, lambda hv, value: hv.hv_vm.set_guest_os_id(value)
    ),
    msrs.HV_X64_MSR_HYPERCALL: SyntheticMsr(
        _HYPERCALL,
        lambda hv: hv.hv_vm.hypercall,
        lambda hv, value: hv.hv_vm.set_hypercall(value),
        lambda hv, value: hv.hv_vm.set_hypercall(value, host_initiated=True),
    ),
    msrs.HV_X64_MSR_VP_INDEX: SyntheticMsr(
        Privilege.AccessVpIndex,
        lambda hv: hv.vp_index,
        None,
        lambda hv, value: hv.hv_vm.set_vp_index(hv, value),
    ),
    msrs.HV_X64_MSR_RESET: SyntheticMsr(Privilege.AccessResetReg, _zero, _set_reset, _ignored),
    msrs.HV_X64_MSR_VP_RUNTIME: SyntheticMsr(
        Privilege.AccessVpRunTimeReg, lambda hv: hv.runtime_ns // REFERENCE_TICK_NS, None, _set_vp_runtime
    ),
    msrs.HV_X64_MSR_TIME_REF_COUNT: SyntheticMsr(
        Privilege.AccessPartitionReferenceCounter, lambda hv: hv.hv_vm.reference_time.counter()
    ),
    msrs.HV_X64_MSR_REFERENCE_TSC: SyntheticMsr(
        Privilege.AccessPartitionReferenceTsc,
        lambda hv: hv.hv_vm.reference_time.register,
        lambda hv, value: hv.hv_vm.set_reference_tsc(value),
    ),
    msrs.HV_X64_MSR_TSC_FREQUENCY: SyntheticMsr(_FREQUENCY, lambda hv: hv.vcpu.vm.tsc_khz * _KHZ),
    msrs.HV_X64_MSR_APIC_FREQUENCY: SyntheticMsr(_FREQUENCY, lambda _hv: _NS_PER_S // APIC_BUS_CYCLE_NS),
    msrs.HV_X64_MSR_NPIEP_CONFIG: SyntheticMsr(NPIEP, lambda hv: hv.npiep, lambda hv, value: hv.set_npiep(value)),
    msrs.HV_X64_MSR_EOI: SyntheticMsr(_APIC, _write_only, _set_eoi, _ignored),
    msrs.HV_X64_MSR_ICR: SyntheticMsr(_APIC, _get_icr, _set_icr, _ignored),
    msrs.HV_X64_MSR_TPR: SyntheticMsr(_APIC, _get_tpr, _set_tpr, _ignored),
    msrs.HV_X64_MSR_VP_ASSIST_PAGE: SyntheticMsr(_APIC, lambda hv: hv.assist.register, _set_vp_assist),
    msrs.HV_X64_MSR_SCONTROL: SyntheticMsr(_SYNIC, lambda hv: hv.synic.scontrol, _set_scontrol),
    msrs.HV_X64_MSR_SVERSION: SyntheticMsr(_SYNIC, lambda _hv: HV_SYNIC_VERSION),
    msrs.HV_X64_MSR_SIEFP: SyntheticMsr(_SYNIC, lambda hv: hv.synic.siefp, _set_siefp),
    msrs.HV_X64_MSR_SIMP: SyntheticMsr(_SYNIC, lambda hv: hv.synic.simp, _set_simp),
    msrs.HV_X64_MSR_EOM: SyntheticMsr(_SYNIC, _zero, _set_eom, _ignored),
    **{
        index: _sint(index - msrs.HV_X64_MSR_SINT0)
        for index in range(msrs.HV_X64_MSR_SINT0, msrs.HV_X64_MSR_SINT15 + 1)
    },
    **{
        index: _stimer((index - msrs.HV_X64_MSR_STIMER0_CONFIG) // 2, is_count=index & 1 != 0)
        for index in range(msrs.HV_X64_MSR_STIMER0_CONFIG, msrs.HV_X64_MSR_STIMER3_COUNT + 1)
    },
    msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_CONFIG: SyntheticMsr(
        _UNHALTED, lambda hv: hv.unhalted.config, lambda hv, value: hv.unhalted.set_config(value)
    ),
    msrs.HV_X64_MSR_STIME_UNHALTED_TIMER_COUNT: SyntheticMsr(
        _UNHALTED, lambda hv: hv.unhalted.count, lambda hv, value: hv.unhalted.set_count(value)
    ),
    msrs.HV_X64_MSR_TSC_INVARIANT_CONTROL: _stored(
        Privilege.AccessTscInvariantControls, msrs.HV_X64_MSR_TSC_INVARIANT_CONTROL, _set_tsc_invariant_control
    ),
    msrs.HV_X64_MSR_GUEST_IDLE: SyntheticMsr(Privilege.AccessGuestIdleReg, _zero),
    # No bit of CPUID tells of this one; it says that there is no debug device until a guest says otherwise.
    msrs.HV_X64_MSR_DEBUG_DEVICE_OPTIONS: SyntheticMsr(
        _HYPERCALL, lambda hv: hv.hv_vm.debug_options.load(), lambda hv, value: hv.hv_vm.set_debug_options(value)
    ),
    **{
        index: _crash_parameter(index - msrs.HV_X64_MSR_CRASH_P0)
        for index in range(msrs.HV_X64_MSR_CRASH_P0, msrs.HV_X64_MSR_CRASH_P4 + 1)
    },
    msrs.HV_X64_MSR_CRASH_CTL: SyntheticMsr(GUEST_CRASH, lambda _hv: CRASH_CAPABILITIES, _set_crash_control, _ignored),
    msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL: _stored(
        _REENLIGHTENMENT, msrs.HV_X64_MSR_REENLIGHTENMENT_CONTROL, _set_reenlightenment
    ),
    msrs.HV_X64_MSR_TSC_EMULATION_CONTROL: _stored(
        _REENLIGHTENMENT, msrs.HV_X64_MSR_TSC_EMULATION_CONTROL, _set_tsc_emulation_control
    ),
    msrs.HV_X64_MSR_TSC_EMULATION_STATUS: SyntheticMsr(_REENLIGHTENMENT, _zero, _set_tsc_emulation_status),
}
