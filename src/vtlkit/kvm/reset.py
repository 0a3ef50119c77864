"""What RESET and INIT make of a vCPU. Mirrors `kvm_vcpu_reset` of arch/x86/kvm/x86.c (SDM volume 3, table 10-1).

Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.x86.msr import MSR_EFER, MSR_IA32_CR_PAT, PAT_RESET
from vtlkit.x86.registers import Regs, Sregs

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_FPU_RESET: Final = bytes([0x7F, 0x03]) + bytes(22) + bytes([0x80, 0x1F]) + bytes(512 - 26)
"""FXSAVE image after reset: FCW 037Fh (FINIT's value, as KVM sets), MXCSR 1F80h."""
_INIT_KEEPS_CR0: Final = 0x60000000
"""INIT leaves CD and NW as they are."""
_SIGNATURE: Final = 0x600
"""RDX before CPUID has been set."""
_DR6_RESET: Final = 0xFFFF0FF0
_DR7_RESET: Final = 0x400
_MSR_RESET: Final = {MSR_IA32_CR_PAT: PAT_RESET}


def vcpu_reset(vcpu: Vcpu, *, init_event: bool) -> None:
    """Architectural start values; interrupt state forgotten. INIT keeps MSRs, FPU and Hyper-V state."""
    engine = vcpu.engine
    engine.abandon()
    vcpu.nested.reset(init_event=init_event)
    old_cr0 = engine.cr0
    vcpu.events.reset()
    vcpu.user.reset()
    vcpu.pending_exit = None
    vcpu.waiting.reset()
    engine.nmi_blocked = False
    engine.interrupt_shadow = False
    engine.request_interrupt_window(False)
    engine.request_nmi_window(False)
    vcpu.apic.reset(init_event)
    sregs = Sregs.reset()
    if init_event:
        sregs.cr0 = (sregs.cr0 & ~_INIT_KEEPS_CR0) | (old_cr0 & _INIT_KEEPS_CR0)
        vcpu.hv.reset(init_event=True)
    else:
        vcpu.msrs.reset()
        engine.set_fpu(_FPU_RESET)
        engine.xcr0 = 1
        engine.pkru = 0
        vcpu.hv.reset(init_event=False)
    engine.set_sregs(sregs)
    vcpu.update_intercepts()
    signature = vcpu.cpuid.find(1)
    vcpu.set_regs(Regs.reset(signature.eax if signature else _SIGNATURE))
    engine.set_debugregs((0, 0, 0, 0, _DR6_RESET, _DR7_RESET))
    if not init_event:
        for msr in engine.native_msrs - {MSR_EFER}:
            engine.set_msr(msr, _MSR_RESET.get(msr, 0))
