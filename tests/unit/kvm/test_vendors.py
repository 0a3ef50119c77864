"""What each vendor lets hold an interrupt and an NMI off, in one table; and how a vendor is chosen."""

from __future__ import annotations

import errno
from itertools import product

import pytest

from tests.unit.kvm.core_rig import Cpus, Machine
from vtlkit.host.sim import Simulator
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.uapi import Kvm
from vtlkit.kvm.vendor import VENDORS, vendor_named
from vtlkit.kvm.vm import Vm
from vtlkit.vmm.config import MachineConfig
from vtlkit.x86.registers import RFLAGS_IF

NEITHER, INTERRUPT, NMI, BOTH = set[str](), {"irq"}, {"nmi"}, {"irq", "nmi"}

# GIF, RFLAGS.IF, shadow of STI or MOV SS, NMI in service -> what is blocked on SVM, on VMX
TABLE = {
    (1, 1, 0, 0): (NEITHER, NEITHER),
    (1, 0, 0, 0): (INTERRUPT, INTERRUPT),
    (1, 1, 1, 0): (BOTH, BOTH),
    (1, 0, 1, 0): (BOTH, BOTH),
    (1, 1, 0, 1): (NMI, NMI),
    (1, 0, 0, 1): (BOTH, BOTH),
    (1, 1, 1, 1): (BOTH, BOTH),
    (1, 0, 1, 1): (BOTH, BOTH),
    # VMX has no global interrupt flag: whatever the word says, it counts for nothing there.
    (0, 1, 0, 0): (BOTH, NEITHER),
    (0, 0, 0, 0): (BOTH, INTERRUPT),
    (0, 1, 1, 0): (BOTH, BOTH),
    (0, 0, 1, 0): (BOTH, BOTH),
    (0, 1, 0, 1): (BOTH, NMI),
    (0, 0, 0, 1): (BOTH, BOTH),
    (0, 1, 1, 1): (BOTH, BOTH),
    (0, 0, 1, 1): (BOTH, BOTH),
}


def machine_of(vendor: str) -> Machine:
    machine = Machine(vendor=vendor)
    assert machine.vcpu.vendor is VENDORS[vendor]
    return machine


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(product((0, 1), repeat=4))


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("row", TABLE)
def test_what_is_blocked(row: tuple[int, int, int, int], vendor: str) -> None:
    vcpu = machine_of(vendor).vcpu
    gif, interrupt_flag, shadow, nmi = row
    vcpu.gif = bool(gif)
    vcpu.engine.rflags = RFLAGS_IF if interrupt_flag else 0
    vcpu.engine.interrupt_shadow = bool(shadow)
    vcpu.engine.nmi_blocked = bool(nmi)
    found = {"irq"} if vcpu.vendor.interrupt_blocked(vcpu) else set()
    assert vcpu.vendor.interrupt_allowed(vcpu) is not bool(found)
    if vcpu.vendor.nmi_blocked(vcpu):
        found.add("nmi")
    assert found == TABLE[row][list(VENDORS).index(vendor)]


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_inactive_vtl_ignores_rflags_if_and_nothing_else(vendor: str) -> None:
    vcpu = machine_of(vendor).vcpu
    vcpu.mp_state = MpState.HV_INACTIVE_VTL
    assert vcpu.vendor.interrupt_allowed(vcpu)
    vcpu.engine.interrupt_shadow = True
    assert vcpu.vendor.interrupt_blocked(vcpu)
    vcpu.engine.interrupt_shadow = False
    vcpu.gif = False
    assert vcpu.vendor.interrupt_blocked(vcpu) == (vendor == "svm")


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_nmi_is_blocked_from_its_injection_on(vendor: str) -> None:
    vcpu = machine_of(vendor).vcpu
    vcpu.vendor.inject_nmi(vcpu)
    assert vcpu.vendor.nmi_blocked(vcpu)


def test_svm_has_no_exits_at_a_time() -> None:
    vcpu = machine_of("svm").vcpu
    assert vcpu.preemption_timer is None
    with pytest.raises(AssertionError, match="svm uses no preemption timer"):
        vcpu.vendor.handle_preemption_timer(vcpu)
    with pytest.raises(AssertionError, match="svm uses no preemption timer"):
        vcpu.vendor.handle_fastpath_preemption_timer(vcpu, False)


def test_a_vendor_that_there_is_not() -> None:
    for make in (
        lambda: vendor_named("tdx"),
        lambda: Kvm(Simulator(), Cpus({}, {}), vendor="tdx"),
        lambda: Vm(Simulator(), Cpus({}, {}), "vm", vendor="tdx"),
    ):
        with pytest.raises(KvmError, match="vendor 'tdx': there are svm and vmx") as caught:
            make()
        assert caught.value.errno == errno.EINVAL


def test_the_machine_passes_its_vendor_on() -> None:
    assert MachineConfig().vendor == "svm"
    assert Kvm(Simulator(), Cpus({}, {}), vendor="vmx").create_vm().vendor is VENDORS["vmx"]
