"""SVM's model-specific registers: VM_CR and VM_HSAVE_PA. Mirrors `svm_set_vm_cr` and `svm_set_msr`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.x86.cpuid import CPUID_80000001_ECX_SVM
from vtlkit.x86.msr import MSR_EFER, VM_CR_LOCK, VM_CR_SVMDIS
from vtlkit.x86.registers import EFER_SVME

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_VALID: Final = 0x1F


def has_svm(vcpu: Vcpu) -> bool:
    """Whether CPUID offers SVM."""
    return vcpu.cpuid.has(0x80000001, "ecx", CPUID_80000001_ECX_SVM)


def get_vm_cr(vcpu: Vcpu) -> int:
    """SVMDIS where SVM is not offered."""
    return vcpu.nested.vm_cr if has_svm(vcpu) else VM_CR_SVMDIS


def set_vm_cr(vcpu: Vcpu, value: int, _host_initiated: bool) -> bool:
    """SVMDIS and LOCK stay once LOCK is set; SVM that is on is not disabled. Without SVM ignored, as KVM does."""
    if not has_svm(vcpu):
        return True
    if value & ~_VALID:
        return False
    nested = vcpu.nested
    fixed = VM_CR_LOCK | VM_CR_SVMDIS if nested.vm_cr & VM_CR_LOCK else 0
    value = value & ~fixed | nested.vm_cr & fixed
    if value & VM_CR_SVMDIS and vcpu.engine.get_msr(MSR_EFER) & EFER_SVME:
        return False
    nested.vm_cr = value
    return True


def get_hsave(vcpu: Vcpu) -> int:
    return vcpu.nested.hsave_pa


def set_hsave(vcpu: Vcpu, value: int, host_initiated: bool) -> bool:
    """A page that the guest's processor can address."""
    if not host_initiated and (not has_svm(vcpu) or value & 0xFFF or value >> vcpu.cpuid.maxphyaddr()):
        return False
    vcpu.nested.hsave_pa = value
    return True
