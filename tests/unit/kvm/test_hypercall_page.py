"""The hypercall page as machine code sees it: called, read, written to, locked."""

from __future__ import annotations

import pytest

from tests.unit.kvm.embedded_rig import Machine
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries
from vtlkit.testing.guest_builder import FREE, RAM_SIZE
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.paging import PTE_P, PTE_W

pytestmark = pytest.mark.tlfs("msrs.hypercall")

OS_ID, HYPERCALL = msrs.HV_X64_MSR_GUEST_OS_ID, msrs.HV_X64_MSR_HYPERCALL
ENABLE, LOCKED = msrs.HV_MSR_PAGE_ENABLE, msrs.HV_X64_MSR_HYPERCALL_LOCKED
FAST = 1 << 16
CALL_RBX = b"\xff\xd3"
MOV_RAX_FROM_RBX = b"\x48\x8b\x03"
MOV_RBX_FROM_AL = b"\x88\x03"
WRMSR = b"\x0f\x30"


class Guest(Machine):
    """64-bit code in a virtual machine that offers all of the interface; RBX points at the page that lies at `gpa`."""

    def __init__(self, gpa: int) -> None:
        super().__init__()
        self.vcpu.set_cpuid2(self.vcpu.vm.get_supported_cpuid() + hv_cpuid_entries(HvFeatures()))
        self.gpa = gpa

    def begin(self) -> None:
        self.guest.long_mode()
        self.guest.map_page(FREE, self.gpa | PTE_P | PTE_W)
        self.vcpu.engine.flush_tlb()
        self.vcpu.engine.regs.rbx = FREE

    def wrmsr(self, index: int, value: int) -> bool:
        """False is #GP."""
        self.begin()
        regs = self.vcpu.engine.regs
        regs.rcx, regs.rax, regs.rdx = index, value & 0xFFFFFFFF, value >> 32
        return not self.faults(WRMSR, Vector.GP)

    def read(self) -> int:
        self.begin()
        assert not self.faults(MOV_RAX_FROM_RBX, Vector.PF)
        return self.vcpu.engine.regs.rax

    def enable(self, flags: int = 0) -> None:
        assert self.wrmsr(OS_ID, 1)
        assert self.wrmsr(HYPERCALL, self.gpa | ENABLE | flags)


@pytest.mark.parametrize("gpa", [FREE, RAM_SIZE + 0x5000], ids=["over RAM", "where no memory is"])
def test_a_call_of_the_page_is_a_hypercall(gpa: int) -> None:
    guest = Guest(gpa)
    guest.enable()
    for control, status in ((Call.HvCallNotifyLongSpinWait | FAST, 0), (0x7777, HvStatus.INVALID_HYPERCALL_CODE)):
        guest.begin()
        guest.vcpu.engine.regs.rcx = control
        guest.vcpu.engine.regs.rax = 0x1234
        assert not guest.faults(CALL_RBX, Vector.UD)
        assert guest.vcpu.engine.regs.rax == status
    assert guest.vcpu.hv.hypercalls == 2


@pytest.mark.parametrize("gpa", [FREE, RAM_SIZE + 0x5000], ids=["over RAM", "where no memory is"])
def test_a_write_is_a_general_protection_fault_and_changes_nothing(gpa: int) -> None:
    guest = Guest(gpa)
    guest.guest.put(FREE, 8, 0x1122334455667788)
    guest.enable()
    code = guest.read()
    guest.begin()
    guest.vcpu.engine.regs.rax = 0xC3
    assert guest.faults(MOV_RBX_FROM_AL, Vector.GP)
    assert guest.read() == code
    if gpa == FREE:
        assert guest.wrmsr(HYPERCALL, 0)
        assert guest.read() == 0x1122334455667788


def test_a_locked_page_stays_where_it_is() -> None:
    guest = Guest(FREE)
    guest.enable(LOCKED)
    code = guest.read()
    assert not guest.wrmsr(HYPERCALL, FREE + 0x1000 | ENABLE)
    assert not guest.wrmsr(HYPERCALL, 0)
    assert guest.read() == code
    # The OS identity is not locked: without one there are no hypercalls, and no page.
    assert guest.wrmsr(OS_ID, 0)
    assert guest.read() == 0


@pytest.mark.tlfs("msrs.guest-os-id")
def test_without_an_identity_there_is_no_page() -> None:
    guest = Guest(FREE)
    assert guest.wrmsr(HYPERCALL, FREE | ENABLE)
    assert guest.read() == 0
    assert guest.vcpu.get_msr(HYPERCALL) == FREE
    guest.enable()
    assert guest.read() != 0
    assert guest.vcpu.get_msr(OS_ID) == 1
