"""Tracepoints that need more than a line: what is read of the vCPU before it goes into a trace.

Counterpart: TP_fast_assign of arch/x86/kvm/trace.h. Called only where `Vcpu.trace` is set, by the vCPU's task. Nothing
here changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine import api
from vtlkit.engine.api import Access, Event, EventType
from vtlkit.kvm import kvm_run
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.nested.virtual_interrupts import event_word
from vtlkit.x86.apic import DeliveryMode, Shorthand
from vtlkit.x86.exceptions import PFERR_FETCH, PFERR_PRESENT, PFERR_WRITE, Vector
from vtlkit.x86.svm import SvmExit

if TYPE_CHECKING:
    from vtlkit.kvm.ipi import Irq
    from vtlkit.kvm.nested.intercepts import NestedExit
    from vtlkit.kvm.nested.vmcb import VmcbControl, VmcbSave
    from vtlkit.kvm.vcpu import Vcpu
    from vtlkit.trace.tracer import VcpuTrace

_NOTHING: Final = (0, 0, 0, 0)
_U32: Final = 0xFFFFFFFF
_EINTR: Final = 4
_KVM_EXIT: Final = {
    "IO": 2,
    "DEBUG": 4,
    "MMIO": 6,
    "IRQ_WINDOW_OPEN": 7,
    "SHUTDOWN": 8,
    "INTERNAL_ERROR": 17,
    "SYSTEM_EVENT": 24,
    "HYPERV": 27,
    "X86_RDMSR": 29,
    "X86_WRMSR": 30,
    "MEMORY_FAULT": 39,
}
"""KVM_EXIT_* of linux/kvm.h; what is this project's own is UNKNOWN, 0."""


def vcpu_run(vcpu: Vcpu, budget: int | None, force_immediate_exit: bool) -> api.Exit:
    """The vendor's `vcpu_run` between its two tracepoints, as `svm_vcpu_run` has them."""
    trace, engine = vcpu.trace, vcpu.engine
    assert trace is not None
    trace.entry(engine.regs.rip, force_immediate_exit, _ahead_ns(vcpu))
    reason = vcpu.vendor.vcpu_run(vcpu, budget, force_immediate_exit)
    trace.exit(reason.name, engine.regs.rip, exit_info(reason), _ahead_ns(vcpu))
    return reason


def _ahead_ns(vcpu: Vcpu) -> int:
    """What has been executed, and exited, since a deterministic host's clock was last told (`VcpuTime.sync_clock`)."""
    executed = vcpu.engine.instructions()
    if executed is None or not vcpu.host.deterministic:
        return 0
    assert vcpu.trace is not None
    vm = vcpu.vm
    return (executed - vcpu.clock_mark) * vm.ns_per_instruction + vcpu.trace.unsynced_exits * vm.ns_per_exit


def exit_info(reason: api.Exit) -> tuple[int, int, int, int]:
    """EXITINFO1, EXITINFO2, EXITINTINFO and its error code, as SVM reports the exit (AMD APM volume 2, appendix C)."""
    if isinstance(reason, api.PortIn | api.PortOut):
        is_in = isinstance(reason, api.PortIn)
        return reason.port << 16 | reason.size << 4 | is_in, 0, 0, 0
    if isinstance(reason, api.MmioRead | api.MmioWrite):
        return PFERR_WRITE if isinstance(reason, api.MmioWrite) else 0, reason.gpa, 0, 0
    if isinstance(reason, api.MemoryFault):
        return _error_code(reason), reason.gpa, *event_word(reason.vectoring)
    if isinstance(reason, api.ExceptionExit):
        return reason.error_code or 0, reason.address, *event_word(reason.vectoring)
    if isinstance(reason, api.Wrmsr):
        return 1, 0, 0, 0
    return _NOTHING


def _error_code(fault: api.MemoryFault) -> int:
    kind = {Access.WRITE: PFERR_WRITE, Access.EXECUTE: PFERR_FETCH}.get(fault.access, 0)
    return kind | (PFERR_PRESENT if fault.mapped else 0)


def userspace_exit(vcpu: Vcpu, exit_: KvmRun) -> None:
    """KVM_RUN returns."""
    assert vcpu.trace is not None
    if isinstance(exit_, kvm_run.Intr):
        vcpu.trace.userspace_exit("restart", _EINTR)
        return
    number = _KVM_EXIT.get(exit_.reason, 0)
    vcpu.trace.userspace_exit(f"KVM_EXIT_{exit_.reason}", number)


def block(vcpu: Vcpu) -> None:
    """The vCPU goes to sleep: in a wait call, in a VTL switch's completion, or in its MP state."""
    assert vcpu.trace is not None
    if vcpu.waiting.type is not None:
        vcpu.trace.block(f"WAIT_{vcpu.waiting.type.name}")
    elif vcpu.waiting.completion is not None:
        vcpu.trace.block("COMPLETION")
    else:
        # One that is RUNNABLE waits at an instruction that cannot be executed now (`wait.suspend`).
        vcpu.trace.block("SUSPENDED" if vcpu.mp_state is MpState.RUNNABLE else vcpu.mp_state.name)


def polled(vcpu: Vcpu, taken_ns: int, *, found: bool, valid: bool) -> None:
    """A halt has polled for `taken_ns`; only if it was worth it nothing else is to follow."""
    assert vcpu.trace is not None
    if found:
        vcpu.trace.polled(taken_ns, valid)


def page_fault(vcpu: Vcpu, fault: api.MemoryFault) -> None:
    """An access that the engine's map does not permit."""
    assert vcpu.trace is not None
    vcpu.trace.page_fault(vcpu.engine.regs.rip, fault.gpa, _error_code(fault))


def completed(vcpu: Vcpu, pending: kvm_run.Io | kvm_run.Mmio) -> None:
    """User space has given the value of a load or IN."""
    assert vcpu.trace is not None
    if isinstance(pending, kvm_run.Io):
        vcpu.trace.pio(False, pending.port, pending.size, pending.data)
    else:
        vcpu.trace.mmio(False, pending.size, pending.gpa, pending.data)


def injected(vcpu: Vcpu, event: Event, *, again: bool) -> None:
    """An event that is no interrupt of a controller is given to the engine; `again`: an exit had cut it short."""
    trace = vcpu.trace
    assert trace is not None
    if event.type is EventType.NMI:
        trace.inject_nmi(again)
    elif event.type is EventType.EXCEPTION:
        known = event.vector in Vector.__members__.values()
        name = f"#{Vector(event.vector).name}" if known else f"#{event.vector}"
        trace.inject_exception(name, event.error_code or 0, again)
    else:
        trace.inject_irq(event.vector, event.type is EventType.SOFTWARE, again)


def hypercall(vcpu: Vcpu) -> None:
    """A hypercall at RIP, before anything looks at it."""
    trace, regs = vcpu.trace, vcpu.engine.regs
    assert trace is not None
    if not vcpu.hv.hypercall_enabled:
        trace.hypercall(regs.rax, (regs.rbx, regs.rcx, regs.rdx, regs.rsi))
    elif vcpu.is_64bit():
        trace.hv_hypercall(regs.rcx, regs.rdx, regs.r8)
    else:
        trace.hv_hypercall(_pair(regs.rdx, regs.rax), _pair(regs.rbx, regs.rcx), _pair(regs.rdi, regs.rsi))


def nested_vmenter(vcpu: Vcpu, control: VmcbControl, save: VmcbSave) -> None:
    """VMRUN has been accepted, and L2's state loaded."""
    assert vcpu.trace is not None
    nested = vcpu.nested
    vcpu.trace.nested_vmenter(
        nested.host.rip, nested.vmcb_gpa, save.rip, (control.int_ctl, control.event_inj), save.cr3
    )


def nested_vmexit(vcpu: Vcpu, exit_: NestedExit, cut_short: Event | None) -> None:
    """#VMEXIT from L2 to L1. `cut_short`: EXITINTINFO's event."""
    assert vcpu.trace is not None
    code = exit_.code
    reason = SvmExit(code).name.lower() if code in SvmExit.__members__.values() else f"{code:#x}"
    vcpu.trace.nested_vmexit(reason, (exit_.info_1, exit_.info_2), event_word(cut_short))


def ipi(trace: VcpuTrace, irq: Irq) -> None:
    """A local APIC sends a message."""
    mode, shorthand = DeliveryMode(irq.delivery_mode).name, Shorthand(irq.shorthand).name
    trace.ipi(irq.dest_id, irq.vector, mode, irq.logical, shorthand)


def _pair(high: int, low: int) -> int:
    return (high & _U32) << 32 | low & _U32
