"""Exit handlers: what the hypervisor does about each exit of the engine. Mirrors `svm_exit_handlers` and x86.c.

A handler returns None to go on in the guest, or the exit for user space. What user space must answer is completed by
`complete` at the next KVM_RUN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vtlkit.engine import api
from vtlkit.kvm import control_registers, hypercalls, intercepted, kvm_run, tracing
from vtlkit.kvm.cpuid import DYNAMIC_LEAVES, for_guest
from vtlkit.kvm.hyperv.hypercall import check_block
from vtlkit.kvm.kvm_run import KvmRun
from vtlkit.kvm.memory_faults import memory_fault
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_TSC_AUX

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

# Plain copies: the enum lives with the vCPU, and an attribute look-up on it costs more than the store.
OUTSIDE_GUEST_MODE: Any = 0
IN_GUEST_MODE: Any = 1

_U32: Final = 0xFFFFFFFF


def emulate_cpuid(vcpu: Vcpu, length: int) -> None:
    """`kvm_emulate_cpuid`."""
    engine = vcpu.engine
    regs = engine.regs
    function = regs.rax & _U32
    entry = None if function in DYNAMIC_LEAVES else vcpu.cpuid.plain.get(function)
    if entry is not None:
        regs.rax, regs.rbx, regs.rcx, regs.rdx = entry
    else:
        regs.rax, regs.rbx, regs.rcx, regs.rdx = for_guest(vcpu, function, regs.rcx & _U32)
    engine.skip(length)
    vcpu.statistics.cpuid_exits += 1


def handle(vcpu: Vcpu, reason: api.Exit) -> KvmRun | None:
    """What is done about an exit of the engine: nothing of it is left, or it is an exit to user space."""
    if vcpu.guest_mode and vcpu.nested.handle(reason):
        return None
    wanted = vcpu.user_intercepts
    if wanted is None:
        return HANDLERS[type(reason)](vcpu, reason)
    exit_ = intercepted.before(vcpu, wanted, reason)
    if exit_ is not None:
        return exit_
    return intercepted.after(vcpu, wanted, HANDLERS[type(reason)](vcpu, reason))


def _cpuid(vcpu: Vcpu, exit_: api.Cpuid) -> None:
    """Off the fast path, as user space may have registered results."""
    regs = vcpu.engine.regs
    regs.rax, regs.rbx, regs.rcx, regs.rdx = for_guest(vcpu, regs.rax & _U32, regs.rcx & _U32)
    vcpu.engine.skip(exit_.length)
    vcpu.statistics.cpuid_exits += 1


def _interrupted(_vcpu: Vcpu, _exit: api.Exit) -> None:
    """The run loop has something to look at."""


def _window(vcpu: Vcpu, _exit: api.Exit) -> None:
    """The guest can take what it could not: look again (`interrupt_window_interception`)."""
    vcpu.make_request(Req.EVENT)


def _preemption_timer(vcpu: Vcpu, _exit: api.Exit) -> None:
    vcpu.vendor.handle_preemption_timer(vcpu)


def _hlt(vcpu: Vcpu, exit_: api.Hlt) -> KvmRun | None:
    """`kvm_emulate_halt`."""
    vcpu.engine.skip(exit_.length)
    vcpu.hv.idle = False
    vcpu.mp_state = MpState.HALTED
    return None


def _rdmsr(vcpu: Vcpu, exit_: api.Rdmsr) -> KvmRun | None:
    regs = vcpu.engine.regs
    index = regs.rcx & _U32
    value = vcpu.msrs.get(index)
    wanted = vcpu.user_intercepts
    if value is None and wanted is not None and index in wanted.msr_ignored_reads and _unimplemented(vcpu, index):
        value = 0
    if vcpu.trace is not None:
        vcpu.trace.msr(False, index, value or 0, value is None)
    if value is None:
        if vcpu.vm.user_space_msr:
            vcpu.exit_length = exit_.length
            return kvm_run.Rdmsr(index)
        vcpu.queue_exception(Vector.GP, 0)
        return None
    regs.rax, regs.rdx = value & _U32, value >> 32
    vcpu.engine.skip(exit_.length)
    if vcpu.hv.idle_requested:
        vcpu.hv.idle_requested = False
        vcpu.hv.idle = True
        vcpu.mp_state = MpState.HALTED
    return None


def _wrmsr(vcpu: Vcpu, exit_: api.Wrmsr) -> KvmRun | None:
    regs = vcpu.engine.regs
    index = regs.rcx & _U32
    value = (regs.rax & _U32) | (regs.rdx & _U32) << 32
    result = vcpu.msrs.set(index, value)
    wanted = vcpu.user_intercepts
    if not result and wanted is not None and index in wanted.msr_ignored_writes:
        result = _unimplemented(vcpu, index)
    if vcpu.trace is not None:
        vcpu.trace.msr(True, index, value, not result)
    if not result:
        if vcpu.vm.user_space_msr:
            vcpu.exit_length = exit_.length
            return kvm_run.Wrmsr(index, value)
        vcpu.queue_exception(Vector.GP, 0)
        return None
    vcpu.engine.skip(exit_.length)
    return None


def _unimplemented(vcpu: Vcpu, index: int) -> bool:
    """Whether there is no such MSR, rather than one that refuses."""
    return vcpu.msrs.get(index, host_initiated=True) is None


def _hypercall(vcpu: Vcpu, exit_: api.Hypercall) -> KvmRun | None:
    if vcpu.trace is not None:
        tracing.hypercall(vcpu)
    if vcpu.hv.hypercall_enabled:
        return vcpu.hv.hypercall(exit_.length)
    hypercalls.emulate(vcpu, exit_.length)
    return None


def _pause(vcpu: Vcpu, exit_: api.Pause) -> None:
    """The guest spins: let the other vCPUs run (`kvm_vcpu_on_spin`). With nobody to let run, PAUSE does not exit until
    the slice is over or the guest may have woken somebody (MAY_WAKE), as KVM's PAUSE filter counts higher where
    yielding does not help (`grow_ple_window`)."""
    vcpu.engine.skip(exit_.length)
    if not vcpu.host.relax():
        vcpu.pauses_alone = True
        vcpu.update_intercepts()


MAY_WAKE: Final = frozenset({api.Interrupted, api.Wrmsr, api.Hypercall, api.PortOut, api.MmioWrite})
"""Exits after which somebody else may want to run."""


def pause_again(vcpu: Vcpu) -> None:
    """PAUSE exits from now on."""
    vcpu.pauses_alone = False
    vcpu.update_intercepts()


def _rdtsc(vcpu: Vcpu, exit_: api.Rdtsc) -> None:
    regs = vcpu.engine.regs
    tsc = vcpu.guest_tsc()
    regs.rax, regs.rdx = tsc & _U32, tsc >> 32
    if exit_.with_aux:
        regs.rcx = vcpu.engine.get_msr(MSR_TSC_AUX) & _U32
    vcpu.engine.skip(exit_.length)


def _port_in(vcpu: Vcpu, exit_: api.PortIn) -> KvmRun | None:
    device = vcpu.vm.port_bus.ports.get(exit_.port)
    if device is not None:
        value = device[0](exit_.port, exit_.size)
        if vcpu.trace is not None:
            vcpu.trace.pio(False, exit_.port, exit_.size, value)
        vcpu.engine.complete(value)
        return None
    return kvm_run.Io(exit_.port, exit_.size, False)


def _port_out(vcpu: Vcpu, exit_: api.PortOut) -> KvmRun | None:
    if vcpu.trace is not None:
        vcpu.trace.pio(True, exit_.port, exit_.size, exit_.value)
    device = vcpu.vm.port_bus.ports.get(exit_.port)
    if device is not None:
        device[1](exit_.port, exit_.size, exit_.value)
        return None
    return kvm_run.Io(exit_.port, exit_.size, True, exit_.value)


def _port_intercept(_vcpu: Vcpu, _exit: api.PortIntercept) -> None:
    """Whoever wanted to see the access wants it no more, as L1's map may be changed meanwhile: it is made again."""


def _mmio_read(_vcpu: Vcpu, exit_: api.MmioRead) -> KvmRun | None:
    return kvm_run.Mmio(exit_.gpa, exit_.size, False)


def _mmio_write(vcpu: Vcpu, exit_: api.MmioWrite) -> KvmRun | None:
    if vcpu.trace is not None:
        vcpu.trace.mmio(True, exit_.size, exit_.gpa, exit_.value)
    return kvm_run.Mmio(exit_.gpa, exit_.size, True, exit_.value)


def _exception(_vcpu: Vcpu, exit_: api.ExceptionExit) -> KvmRun | None:
    return kvm_run.Debug(exit_.vector, exit_.error_code, exit_.address)


def _shutdown(_vcpu: Vcpu, _exit: api.Shutdown) -> KvmRun | None:
    return kvm_run.Shutdown()


def _internal_error(_vcpu: Vcpu, exit_: api.InternalError) -> KvmRun | None:
    return kvm_run.InternalErrorExit(exit_.reason)


HANDLERS: Final[dict[type[api.Exit], Callable[[Vcpu, Any], KvmRun | None]]] = {
    api.Interrupted: _interrupted,
    api.InterruptWindow: _window,
    api.PreemptionTimer: _preemption_timer,
    api.Cpuid: _cpuid,
    api.NmiWindow: _window,
    api.Hlt: _hlt,
    api.Rdmsr: _rdmsr,
    api.Wrmsr: _wrmsr,
    api.Hypercall: _hypercall,
    api.Pause: _pause,
    api.Rdtsc: _rdtsc,
    api.PortIn: _port_in,
    api.PortOut: _port_out,
    api.PortIntercept: _port_intercept,
    api.MmioRead: _mmio_read,
    api.MmioWrite: _mmio_write,
    api.MemoryFault: memory_fault,
    api.ControlRegister: control_registers.access,
    api.Other: control_registers.other,
    api.ExceptionExit: _exception,
    api.Shutdown: _shutdown,
    api.InternalError: _internal_error,
}


_IO_EXITS: Final = (kvm_run.Io, kvm_run.Mmio)


def complete(vcpu: Vcpu) -> None:
    """Take user space's answer to the last exit.

    Raises:
        KvmError: EINVAL, an answer that does not fit the exit. The answer may be changed.
    """
    pending = vcpu.pending_exit
    if pending is None:
        return
    if type(pending) is kvm_run.Hyperv:
        if pending.block:
            check_block(pending)
            vcpu.waiting.completion = pending
        vcpu.pending_exit = None
        vcpu.hv.complete(pending)
        return
    vcpu.pending_exit = None
    if isinstance(pending, _IO_EXITS):
        if not pending.write:
            if vcpu.trace is not None:
                tracing.completed(vcpu, pending)
            vcpu.engine.complete(pending.data)
    elif isinstance(pending, kvm_run.Rdmsr):
        if pending.error:
            vcpu.queue_exception(Vector.GP, 0)
        else:
            vcpu.engine.regs.rax, vcpu.engine.regs.rdx = pending.data & _U32, pending.data >> 32
            vcpu.engine.skip(vcpu.exit_length)
    elif isinstance(pending, kvm_run.Wrmsr):
        if pending.error:
            vcpu.queue_exception(Vector.GP, 0)
        else:
            vcpu.engine.skip(vcpu.exit_length)
