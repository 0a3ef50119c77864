"""VMRUN and its family, executed for L1 and, where L1 lets it, for L2. Mirrors `vmrun_interception` and its
neighbours of arch/x86/kvm/svm/svm.c.

#UD without EFER.SVME or outside protected mode, #GP(0) outside CPL 0 and for an address that no control block can have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vtlkit.kvm.errors import GuestMemoryError
from vtlkit.kvm.nested.registers import vmload, vmsave
from vtlkit.kvm.nested.vmcb import VMCB_SAVE_OFFSET, VMCB_SIZE, VmcbSave
from vtlkit.kvm.requests import Req
from vtlkit.x86.cpuid import CPUID_7_0_ECX_LA57
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.msr import MSR_EFER, MSR_VM_HSAVE_PA
from vtlkit.x86.registers import EFER_SVME

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

_PAGE_MASK: Final = 0xFFF
_U32: Final = 0xFFFFFFFF


def execute(vcpu: Vcpu, mnemonic: str, length: int) -> None:
    """One of `INSTRUCTIONS`, of `length` bytes at RIP."""
    engine = vcpu.engine
    if not vcpu.vm.nested or not engine.get_msr(MSR_EFER) & EFER_SVME or not vcpu.protected_mode():
        vcpu.queue_exception(Vector.UD)
    elif vcpu.cpl():
        vcpu.queue_exception(Vector.GP, 0)
    else:
        _INSTRUCTIONS[mnemonic](vcpu, length)


def _block(vcpu: Vcpu) -> tuple[int, bytes] | None:
    """Address and bytes of the control block that RAX names; #GP if there cannot be one."""
    address = vcpu.engine.regs.rax if vcpu.is_64bit() else vcpu.engine.regs.rax & _U32
    if not address & _PAGE_MASK and not address >> vcpu.cpuid.maxphyaddr():
        try:
            return address, vcpu.vm.memory.read_for_guest(address, VMCB_SIZE)
        except GuestMemoryError:
            pass
    vcpu.queue_exception(Vector.GP, 0)
    return None


def _vmrun(vcpu: Vcpu, length: int) -> None:
    if not vcpu.msrs.get(MSR_VM_HSAVE_PA):
        vcpu.queue_exception(Vector.GP, 0)
        return
    found = _block(vcpu)
    if found is not None:
        vcpu.nested.vmrun(*found, length)


def _vmload(vcpu: Vcpu, length: int) -> None:
    found = _block(vcpu)
    if found is not None:
        linear_bits = 57 if vcpu.cpuid.has(7, "ecx", CPUID_7_0_ECX_LA57) else 48
        vmload(vcpu.engine, VmcbSave.unpack_from(found[1], VMCB_SAVE_OFFSET), linear_bits)
        vcpu.engine.skip(length)


def _vmsave(vcpu: Vcpu, length: int) -> None:
    found = _block(vcpu)
    if found is None:
        return
    page = bytearray(found[1])
    save = VmcbSave.unpack_from(page, VMCB_SAVE_OFFSET)
    vmsave(vcpu.engine, save)
    save.pack_into(page, VMCB_SAVE_OFFSET)
    try:
        vcpu.vm.memory.write_for_guest(found[0], bytes(page))
    except GuestMemoryError:
        vcpu.queue_exception(Vector.GP, 0)
        return
    vcpu.engine.skip(length)


def _stgi(vcpu: Vcpu, length: int) -> None:
    vcpu.engine.skip(length)
    vcpu.gif = True
    # What GIF held up, INIT and NMI among it.
    vcpu.make_request(Req.EVENT)


def _clgi(vcpu: Vcpu, length: int) -> None:
    vcpu.engine.skip(length)
    vcpu.gif = False
    # A window that is open would be told of again and again.
    vcpu.nested.close_windows()


def _invlpga(vcpu: Vcpu, length: int) -> None:
    """There are no translations by ASID: all go."""
    vcpu.engine.flush_tlb()
    vcpu.engine.skip(length)


def _undefined(vcpu: Vcpu, _length: int) -> None:
    vcpu.queue_exception(Vector.UD)


_INSTRUCTIONS: Final[dict[str, Callable[[Vcpu, int], None]]] = {
    "vmrun": _vmrun,
    "vmload": _vmload,
    "vmsave": _vmsave,
    "stgi": _stgi,
    "clgi": _clgi,
    "invlpga": _invlpga,
    "skinit": _undefined,
}
INSTRUCTIONS: Final = frozenset(_INSTRUCTIONS)
