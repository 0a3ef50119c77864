"""Exits of the engine while L2 runs: L1's first, then what the hypervisor emulates for L2 otherwise than for L1.

Mirrors `nested_svm_exit_special` and the places of svm.c that ask `is_guest_mode`. Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.engine import api
from vtlkit.kvm.control_registers import written_value
from vtlkit.kvm.nested.intercepts import nested_exit
from vtlkit.kvm.nested.vmcb import V_TPR_MASK
from vtlkit.kvm.requests import Req
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_IA32_TSC, MSR_TSC_AUX
from vtlkit.x86.registers import GENERAL_REGISTERS

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_U32: Final = 0xFFFFFFFF


def handle(vcpu: Vcpu, reason: api.Exit) -> bool:
    """True if this is all there is to do about an exit of L2; False leaves it to the handlers that L1's have."""
    nested = vcpu.nested
    exit_ = nested_exit(vcpu, nested.intercepts, reason)
    if exit_ is not None:
        nested.leave(exit_)
        return True
    if isinstance(reason, api.Rdtsc):
        if reason.with_aux:
            vcpu.engine.regs.rcx = vcpu.engine.get_msr(MSR_TSC_AUX) & _U32
        _answer(vcpu, nested.tsc(), reason.length)
        return True
    if isinstance(reason, api.Rdmsr) and vcpu.engine.regs.rcx & _U32 == MSR_IA32_TSC:
        wanted = vcpu.user_intercepts
        if wanted is not None and MSR_IA32_TSC in wanted.msr_reads:
            return False
        _answer(vcpu, nested.tsc(), reason.length)
        return True
    if isinstance(reason, api.ControlRegister):
        return reason.register == 8 and nested.masks_interrupts() and _virtual_tpr(vcpu, reason)
    if isinstance(reason, api.Hypercall) and vcpu.hv.hypercall_enabled and not vcpu.hv.is_plain_hypercall():
        # A VTL switch is the processor's, not that of a guest which L1 runs on it.
        vcpu.queue_exception(Vector.UD)
        return True
    return False


def _answer(vcpu: Vcpu, value: int, length: int) -> None:
    regs = vcpu.engine.regs
    regs.rax, regs.rdx = value & _U32, value >> 32
    vcpu.engine.skip(length)


def _virtual_tpr(vcpu: Vcpu, reason: api.ControlRegister) -> bool:
    """CR8 of an L2 whose interrupts L1 masks is V_TPR, not the local APIC's."""
    engine, control = vcpu.engine, vcpu.nested.control
    register = GENERAL_REGISTERS[reason.gpr]
    if not reason.write:
        setattr(engine.regs, register, control.int_ctl & V_TPR_MASK)
    else:
        value = written_value(vcpu, reason)
        if value >> 4:
            vcpu.queue_exception(Vector.GP, 0)
            return True
        control.int_ctl = control.int_ctl & ~V_TPR_MASK | value
        vcpu.make_request(Req.EVENT)
    engine.skip(reason.length)
    return True
