"""KVM's own hypercalls, for a guest that has set up no other interface. Mirrors `kvm_emulate_hypercall` of x86.c.

Number in RAX, arguments in RBX, RCX, RDX and RSI, the answer in RAX; all 32 bits wide outside 64-bit code. As in a KVM
that does not enforce the paravirtual features of CPUID, the calls work though no leaf offers them. Those that need what
is not offered at all (PV unhalt, clock pairing, page attributes) answer -KVM_ENOSYS. Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.x86 import apic as regs

if TYPE_CHECKING:
    from vtlkit.kvm.vcpu import Vcpu

KVM_EPERM: Final = 1
KVM_EINVAL: Final = 22
KVM_ENOSYS: Final = 1000

KVM_HC_VAPIC_POLL_IRQ: Final = 1
KVM_HC_SEND_IPI: Final = 10
KVM_HC_SCHED_YIELD: Final = 11

_U32: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF
_BITMAP_BITS: Final = 64
"""`unsigned long`: the bitmaps are scanned in full whatever the caller's mode; its upper half is 0 in 32-bit code."""


def emulate(vcpu: Vcpu, length: int) -> None:
    """Answer the hypercall at RIP and skip it."""
    live = vcpu.engine.regs
    wide = vcpu.is_64bit()
    mask = _U64 if wide else _U32
    number, low, high, least, icr = (value & mask for value in (live.rax, live.rbx, live.rcx, live.rdx, live.rsi))
    if vcpu.cpl():
        result = -KVM_EPERM
    elif number == KVM_HC_VAPIC_POLL_IRQ:
        result = 0
    elif number == KVM_HC_SEND_IPI:
        result = _send_ipi(vcpu, low, high, least & _U32, icr, 64 if wide else 32)
    elif number == KVM_HC_SCHED_YIELD:
        vcpu.host.relax()
        result = 0
    else:
        result = -KVM_ENOSYS
    live.rax = result & mask
    vcpu.engine.skip(length)


def _send_ipi(vcpu: Vcpu, low: int, high: int, least: int, icr: int, cluster: int) -> int:
    """`kvm_pv_send_ipi`: how many of the APIC IDs `least` + n, bit n of the two bitmaps set, accepted the interrupt."""
    if icr & (regs.APIC_DEST_MASK | regs.APIC_SHORT_MASK):
        return -KVM_EINVAL
    mode = (icr & regs.APIC_MODE_MASK) >> regs.APIC_MODE_SHIFT
    vector = icr & regs.APIC_VECTOR_MASK
    level = 1 if icr & regs.APIC_INT_ASSERT else 0
    trig_level = icr & regs.APIC_INT_LEVELTRIG != 0
    apic_map = vcpu.namespace.bus.map()
    accepted = 0
    for bitmap, first in ((low, least), (high, (least + cluster) & _U32)):
        for bit in range(_BITMAP_BITS):
            if bitmap >> bit & 1:
                for apic in apic_map.physical(first + bit):
                    accepted += apic.accept_irq(mode, vector, level, trig_level)
    return accepted
