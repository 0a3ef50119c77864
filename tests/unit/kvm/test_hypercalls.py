"""KVM's own hypercalls, made by a guest on the embedded CPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.hypercalls import (
    KVM_EINVAL,
    KVM_ENOSYS,
    KVM_EPERM,
    KVM_HC_SCHED_YIELD,
    KVM_HC_SEND_IPI,
    KVM_HC_VAPIC_POLL_IRQ,
)
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm, Vcpu
from vtlkit.testing.guest_builder import CODE, RAM_SIZE, Guest
from vtlkit.x86 import apic

VMMCALL_OUT = b"\x0f\x01\xd9\xe6\x80"
U64 = 0xFFFFFFFFFFFFFFFF
VECTOR = 0x51


@dataclass
class Partition:
    """Three vCPUs, APIC IDs 0, 1 and 40, software-enabled; the first has made one hypercall."""

    vcpus: list[Vcpu]
    rax: int


def _call(number: int, *arguments: int, wide: bool = True, user: bool = False) -> Partition:
    host = Simulator()
    vm = Kvm(host, UnicornFactory()).create_vm()
    vcpus = [vm.create_vcpu(index, apic_id=apic_id) for index, apic_id in enumerate((0, 1, 40))]
    for vcpu in vcpus:
        vcpu.set_cpuid2(vm.get_supported_cpuid())
        vcpu.apic.mmio_write(apic.APIC_SPIV, 4, apic.APIC_SPIV_APIC_ENABLED | 0xFF)
    caller = vcpus[0]
    guest = Guest(caller.engine, map_ram=False)
    vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, guest.ram))
    cpl = 3 if user else 0
    if wide:
        guest.long_mode(cpl=cpl)
    else:
        guest.protected_mode(cpl=cpl)
    if user:
        caller.engine.rflags |= 3 << 12
    regs = caller.engine.regs
    regs.rax = number
    regs.rbx, regs.rcx, regs.rdx, regs.rsi = (*arguments, 0, 0, 0, 0)[:4]
    guest.write(CODE, VMMCALL_OUT)
    regs.rip = CODE

    def body() -> None:
        exit_ = caller.run()
        assert isinstance(exit_, Io), exit_
        caller.complete_exit()

    host.spawn(body, "vcpu")
    host.run()
    return Partition(vcpus, regs.rax)


def _received(partition: Partition) -> list[bool]:
    return [bool(vcpu.apic.irr.test(VECTOR)) for vcpu in partition.vcpus]


def test_unknown_calls_answer_enosys() -> None:
    assert _call(0x1234).rax == -KVM_ENOSYS & U64
    assert _call(0x1234, wide=False).rax == -KVM_ENOSYS & 0xFFFFFFFF


def test_polling_and_yielding_succeed() -> None:
    assert _call(KVM_HC_VAPIC_POLL_IRQ).rax == 0
    assert _call(KVM_HC_SCHED_YIELD, 1).rax == 0


def test_only_the_kernel_may_call() -> None:
    partition = _call(KVM_HC_SEND_IPI, 7, 0, 0, VECTOR, user=True)
    assert partition.rax == -KVM_EPERM & U64
    assert not any(_received(partition))


@pytest.mark.parametrize(
    ("low", "high", "least", "received"),
    [
        (0b11, 0, 0, [True, True, False]),
        (0b1, 0, 1, [False, True, False]),
        (1 << 40, 0, 0, [False, False, True]),
        (0, 1 << 5, (35 - 64) & 0xFFFFFFFF, [False, False, True]),
        (0xFFFFFFFF, 0, 0xFFFFFFFF, [False, False, False]),
        (0, 0, 0, [False, False, False]),
    ],
)
def test_ipis_reach_the_ids_in_the_bitmaps(low: int, high: int, least: int, received: list[bool]) -> None:
    partition = _call(KVM_HC_SEND_IPI, low, high, least, VECTOR)
    assert _received(partition) == received
    assert partition.rax == sum(received)


def test_the_second_bitmap_of_32_bit_code_starts_at_32() -> None:
    assert _received(_call(KVM_HC_SEND_IPI, 0b10, 1 << 8, 0, VECTOR, wide=False)) == [False, True, True]


@pytest.mark.parametrize("icr", [apic.APIC_DEST_LOGICAL | VECTOR, apic.APIC_DEST_SELF | VECTOR])
def test_only_physical_destinations_without_shorthand(icr: int) -> None:
    partition = _call(KVM_HC_SEND_IPI, 7, 0, 0, icr)
    assert partition.rax == -KVM_EINVAL & U64
    assert not any(_received(partition))
