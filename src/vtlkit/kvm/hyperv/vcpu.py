"""The Hyper-V state of one vCPU, and the door through which the run loop reaches the Hyper-V interface (mirrors
`struct kvm_vcpu_hv` and its entry points in arch/x86/kvm/hyperv.c).

Unless a method says otherwise it is for the vCPU's own task: whoever holds the vCPU's mutex. Shared with other tasks
are the SynIC (its lock), the overlays (the lock of `HvVm`), `tlb_flush_inhibit` and `flush_inhibit`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vtlkit.host.api import Cell
from vtlkit.hvdef.cpuid import (
    HV_CPUID_FUNCTION_HV_INTERFACE,
    HV_CPUID_FUNCTION_MS_HV_ENLIGHTENMENT_INFORMATION,
    HV_CPUID_FUNCTION_MS_HV_FEATURES,
    HV_CPUID_INTERFACE_SIGNATURE,
    HV_IMPLEMENTED_PHYSICAL_ADDRESS_BITS,
)
from vtlkit.hvdef.cpuid import HvPartitionPrivilege as Privilege
from vtlkit.hvdef.msrs import HV_NPIEP_ALL, HV_X64_MSR_GUEST_IDLE
from vtlkit.hvdef.status import HvStatus
from vtlkit.hvdef.synic import HV_SYNIC_STIMER_COUNT
from vtlkit.kvm.hyperv import hypercall as calls
from vtlkit.kvm.hyperv.assist import VpAssistPage
from vtlkit.kvm.hyperv.eoi_assist import EoiAssist
from vtlkit.kvm.hyperv.msrs import MSRS
from vtlkit.kvm.hyperv.privileges import privilege_bits
from vtlkit.kvm.hyperv.stimer import SyntheticTimer
from vtlkit.kvm.hyperv.synic import SynIc, sint_vector
from vtlkit.kvm.hyperv.unhalted import UnhaltedTimer
from vtlkit.kvm.kvm_run import Hyperv, KvmRun, SystemEvent, SystemEventExit
from vtlkit.kvm.requests import Req

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibit
    from vtlkit.kvm.hyperv.owner import VcpuOwner
    from vtlkit.kvm.hyperv.vm import HvVm


class HvVcpu:
    """Make it when the vCPU is made; its VP index is its number in order of creation unless given."""

    vcpu: VcpuOwner
    hv_vm: HvVm
    vp_index: int
    npiep: int
    runtime_ns: int
    synic: SynIc
    assist: VpAssistPage
    tlb_flush_inhibit: Cell[bool]
    flush_inhibit: FlushInhibit
    stimers: tuple[SyntheticTimer, ...]
    unhalted: UnhaltedTimer

    __slots__ = (
        "assist",
        "auto_eoi_vectors",
        "enabled",
        "eoi_assist",
        "flush_inhibit",
        "hv_vm",
        "hypercalls",
        "idle",
        "idle_requested",
        "npiep",
        "privileges",
        "runtime_ns",
        "stimers",
        "synic",
        "tlb_flush_inhibit",
        "unhalted",
        "vcpu",
        "vp_index",
    )

    def __init__(self, vcpu: VcpuOwner, vp_index: int | None = None, hv_vm: HvVm | None = None) -> None:
        """`hv_vm`: what it shares with the other processors of its APIC namespace; that of the VM unless given."""
        self.vcpu = vcpu
        self.hv_vm = vcpu.vm.hv if hv_vm is None else hv_vm
        self.enabled = False
        """CPUID offers the interface Hv#1."""
        self.privileges = 0
        """What it offers of it (`privileges`)."""
        self.auto_eoi_vectors = 0
        """Vectors, a bit each, that user space raises as interrupts without EOI, beside those of the SINTs."""
        self.hypercalls = 0
        """Statistic: hypercalls executed."""
        self.idle_requested = False
        """The guest read HV_X64_MSR_GUEST_IDLE: its exit clears this and halts the vCPU."""
        self.idle = False
        """The vCPU, if it is halted, halted so: the next interrupt ends it, whatever RFLAGS.IF says."""
        self.npiep = 0
        """HV_X64_MSR_NPIEP_CONFIG: HV_NPIEP_* of what is #GP at CPL > 0."""
        self.runtime_ns = 0
        """HV_X64_MSR_VP_RUNTIME in ns; all VTLs of a processor share it."""
        self.stimers = tuple(SyntheticTimer(self, index) for index in range(HV_SYNIC_STIMER_COUNT))
        self.unhalted = UnhaltedTimer(self)
        self.eoi_assist = EoiAssist(self)
        self.synic = SynIc(vcpu, f"vcpu{vcpu.vcpu_id}-synic")
        self.assist = VpAssistPage(vcpu.vm.memory)
        # Flush hypercalls that name this vCPU do not complete.
        self.tlb_flush_inhibit = vcpu.host.cell(False, f"vcpu{vcpu.vcpu_id}-tlb-flush-inhibit")
        self.flush_inhibit = self.hv_vm.flush_inhibits.of(self)
        self.vp_index = self.hv_vm.add_vp(self, vp_index)

    def set_cpuid(self, leaves: Iterable[tuple[int, int, int, int, int]]) -> None:
        """KVM_SET_CPUID2 (`kvm_hv_set_cpuid`): what the guest may use. Leaves are (function, eax, ebx, ecx, edx)."""
        found = {function: registers for function, *registers in leaves}
        interface = found.get(HV_CPUID_FUNCTION_HV_INTERFACE, [0])[0]
        self.enabled = interface == HV_CPUID_INTERFACE_SIGNATURE
        eax, ebx, _, edx = found.get(HV_CPUID_FUNCTION_MS_HV_FEATURES, [0] * 4)
        hints, spin_attempts, ecx, _ = found.get(HV_CPUID_FUNCTION_MS_HV_ENLIGHTENMENT_INFORMATION, [0] * 4)
        self.privileges = privilege_bits(eax, ebx, edx, hints, spin_attempts) if self.enabled else 0
        bits = HV_IMPLEMENTED_PHYSICAL_ADDRESS_BITS.get(ecx)
        if self.enabled and bits:
            self.hv_vm.physical_address_bits = bits

    # --- MSRs and hypercalls --------------------------------------------------------------------------------------

    def get_msr(self, index: int, host_initiated: bool) -> int | None:
        """Read a synthetic MSR (0x40000000 to 0x400001FF); None is #GP."""
        msr = MSRS.get(index)
        if msr is None or not (host_initiated or self._may_use(msr.privilege)):
            return None
        if index == HV_X64_MSR_GUEST_IDLE and not host_initiated:
            self.idle_requested = True
        return msr.read(self)

    def set_msr(self, index: int, value: int, host_initiated: bool) -> bool:
        """Write a synthetic MSR; False is #GP. May block. May make requests of the own vCPU without a kick."""
        msr = MSRS.get(index)
        if msr is None:
            return False
        if host_initiated:
            write = msr.host_write or msr.write
            return write is None or write(self, value)
        return msr.write is not None and self._may_use(msr.privilege) and msr.write(self, value)

    def _may_use(self, privilege: int) -> bool:
        return self.enabled and not privilege & ~self.privileges

    def set_npiep(self, value: int) -> bool:
        """Write HV_X64_MSR_NPIEP_CONFIG; False if reserved bits are set."""
        if value & ~HV_NPIEP_ALL:
            return False
        self.npiep = value
        self.vcpu.update_intercepts()
        return True

    @property
    def hypercall_enabled(self) -> bool:
        """Whether the hypercall instruction is a Hyper-V hypercall (`kvm_hv_hypercall_enabled`)."""
        return self.enabled and self.hv_vm.guest_os_id != 0

    def hypercall(self, length: int) -> KvmRun | None:
        """Execute the hypercall at RIP, an instruction of `length` bytes; an exit if user space is to answer it."""
        return calls.hypercall(self, length)

    def is_plain_hypercall(self) -> bool:
        """Whether the hypercall instruction at RIP is a hypercall, and no VTL switch."""
        return calls.is_plain(self)

    def complete(self, exit: Hyperv) -> None:  # noqa: A002
        """Take over user space's answer to a hypercall, before the vCPU runs again."""
        calls.complete(self, exit)

    def set_tlb_flush_inhibit(self, inhibit: bool) -> None:
        """Whether flush hypercalls that target this vCPU are held up (`kvm_hv_set_tlb_flush_inhibit`).

        From any task outside `run`; blocks only in the posted design. Once it is set, none completes that has not made
        its requests before.
        """
        self.flush_inhibit.set(inhibit)

    # --- interrupts -----------------------------------------------------------------------------------------------

    def auto_eoi(self, vector: int) -> bool:
        """Whether an unmasked SINT with auto-EOI uses `vector`, or user space wants it so."""
        return (self.synic.auto_eoi_vectors | self.auto_eoi_vectors) >> vector & 1 != 0

    def on_eoi(self, vector: int) -> None:
        """The local APIC ended an interrupt (`kvm_hv_synic_send_eoi`)."""
        if self.synic.vectors >> vector & 1:
            self.synic.end_of_interrupt(vector)
            for timer in self.stimers:
                timer.retry()

    def awaits_eoi(self, vector: int) -> bool:
        """Whether a message waits that the EOI of `vector` may bring."""
        if not self.synic.vectors >> vector & 1:
            return False
        if self.synic.awaits_eoi(vector):
            return True
        sints = [sint for sint, register in enumerate(self.synic.sints) if sint_vector(register) == vector]
        return any(timer.waits_for_sint(sint) for timer in self.stimers for sint in sints)

    def deliver_waiting(self) -> None:
        """Deliver what waits and can be: the guest wrote HV_X64_MSR_EOM, or made the SynIC accept more."""
        self.synic.end_of_message()
        for timer in self.stimers:
            timer.retry()

    def account_guest_time(self, spent_ns: int) -> None:
        """Guest code of this VTL has executed for so long."""
        self.runtime_ns += spent_ns
        if self.unhalted.running:
            self.unhalted.account(spent_ns)

    def process_stimers(self) -> None:
        """Req.HV_STIMER (`kvm_hv_process_stimers`): set signalled event flags, send what expired timers have to say."""
        self.synic.process_events()
        for timer in self.stimers:
            timer.process()

    def post_synic_message(self, sint: int, message: bytes) -> HvStatus:
        """Deliver or queue an HV_MESSAGE (256 bytes) on a SINT (0 to 15); statuses as `SynIc.post`. From any task."""
        return self.synic.post(sint, message)

    @property
    def hides_invariant_tsc(self) -> bool:
        """CPUID does not tell of the invariant TSC until the guest asks for it (`kvm_hv_invtsc_suppressed`)."""
        return self._may_use(Privilege.AccessTscInvariantControls) and not self.hv_vm.invariant_tsc_exposed

    # --- system events and reset ----------------------------------------------------------------------------------

    def request_crash(self, control: int) -> None:
        """The guest reports its crash: exit to user space."""
        self.hv_vm.set_crash_control(control)
        self.vcpu.make_request(Req.HV_CRASH)

    def request_reset(self) -> None:
        """The guest asks for a reset: exit to user space."""
        self.vcpu.make_request(Req.HV_RESET)

    def system_event(self, request: Req) -> SystemEventExit:
        """The exit for Req.HV_CRASH (data: P0 to P4, then the crash control register) or Req.HV_RESET."""
        if request == Req.HV_CRASH:
            return SystemEventExit(SystemEvent.CRASH, self.hv_vm.crash_data())
        assert request == Req.HV_RESET
        return SystemEventExit(SystemEvent.RESET)

    def reset(self, init_event: bool) -> None:
        """RESET; INIT leaves synthetic state alone. May block. The caller updates intercepts."""
        self.flush_inhibit.forget()
        if init_event:
            return
        self.idle_requested = self.idle = False
        self.npiep = 0
        if self.tlb_flush_inhibit.load():
            self.set_tlb_flush_inhibit(False)
        self.auto_eoi_vectors = 0
        for timer in self.stimers:
            timer.reset()
        self.unhalted.reset()
        self.synic.reset()
        self.assist.reset()
        for page in (self.synic.message_page, self.synic.event_page, self.assist.page):
            self.hv_vm.move_overlay(page, None)

    def destroy(self) -> None:
        """The vCPU is about to go: stop its timers, hold up nobody's flush."""
        if self.tlb_flush_inhibit.load():
            self.set_tlb_flush_inhibit(False)
        for timer in self.stimers:
            timer.destroy()
        self.unhalted.disarm()
