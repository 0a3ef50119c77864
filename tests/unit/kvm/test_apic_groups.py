"""`Cap.APIC_ID_GROUPS`: numbers of vCPUs, siblings, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import RESET, Cpus, script
from tests.unit.kvm.namespace_worlds import BOTH_FORMS, CPUS, NAMESPACES, world
from vtlkit.checker.scenarios.namespaces_rig import Form
from vtlkit.host.sim import Simulator
from vtlkit.kvm import uapi
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.namespaces import MAX_GROUP_BITS, VCPU_ID_BITS
from vtlkit.kvm.uapi import Cap
from vtlkit.kvm.vm import MAX_VCPUS, Vm


def bare_vm() -> Vm:
    return uapi.Kvm(Simulator(), Cpus({RESET: script()}, {})).create_vm()


def refused(error: int, call: Callable[[], object]) -> str:
    with pytest.raises(KvmError) as caught:
        call()
    assert caught.value.errno == error
    return caught.value.message


@pytest.mark.parametrize("bits", [-1, 0, MAX_GROUP_BITS + 1, 32, 33, 1 << 40])
def test_a_number_of_bits_out_of_bounds_is_refused(bits: int) -> None:
    vm = bare_vm()
    refused(errno.EINVAL, lambda: vm.enable_cap(Cap.APIC_ID_GROUPS, bits))
    assert vm.create_vcpu(3).apic_group == 0
    refused(errno.EINVAL, lambda: vm.namespace(1))


def test_groups_are_made_once_and_before_the_first_vcpu() -> None:
    vm = bare_vm()
    vm.enable_cap(Cap.APIC_ID_GROUPS, 1)
    assert "2 APIC ID groups" in refused(errno.EBUSY, lambda: vm.enable_cap(Cap.APIC_ID_GROUPS, 2))
    other = bare_vm()
    other.create_vcpu(0)
    refused(errno.EBUSY, lambda: other.enable_cap(Cap.APIC_ID_GROUPS, 4))


@pytest.mark.parametrize("bits", range(1, MAX_GROUP_BITS + 1))
def test_the_high_bits_of_the_number_name_the_group(bits: int) -> None:
    vm = bare_vm()
    vm.enable_cap(Cap.APIC_ID_GROUPS, bits)
    last = (1 << bits) - 1
    shift = VCPU_ID_BITS - bits
    low, high = vm.create_vcpu(5), vm.create_vcpu(last << shift | 5)
    assert (low.apic_group, high.apic_group) == (0, last)
    assert (low.apic.apic_id, high.apic.apic_id) == (5, 5)
    assert vm.sibling(low, last) is high
    assert vm.sibling(high, 0) is low
    assert vm.sibling(high, last) is high
    assert vm.get_vcpu_by_id(high.vcpu_id) is high
    assert (vm.namespace(0).hv.vp(5), vm.namespace(last).hv.vp(5)) == (low.hv, high.hv)
    refused(errno.EINVAL, lambda: vm.sibling(low, last + 1))
    refused(errno.EINVAL, lambda: vm.sibling(low, -1))
    refused(errno.EINVAL, lambda: vm.create_vcpu(1 << VCPU_ID_BITS))
    if last > 1:
        assert vm.sibling(low, 1) is None


def test_bad_numbers_are_refused_and_leave_nothing_behind() -> None:
    vm = bare_vm()
    vm.enable_cap(Cap.APIC_ID_GROUPS, 4)
    second = 1 << 28
    vm.create_vcpu(second)
    refused(errno.EEXIST, lambda: vm.create_vcpu(second))
    for number in (-1, MAX_VCPUS, second + MAX_VCPUS, 16 << 28):
        refused(errno.EINVAL, lambda number=number: vm.create_vcpu(number))  # type: ignore[misc]
    refused(errno.EINVAL, lambda: vm.create_vcpu(second + 1, apic_id=2))
    assert vm.create_vcpu(second + 1, apic_id=1).apic.apic_id == 1
    assert len(vm.vcpus) == 2
    assert [len(list(vm.namespace(group).bus.members())) for group in range(3)] == [0, 2, 0]


def test_there_are_no_more_vcpus_in_all_groups_than_in_one_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtlkit.kvm.vm.MAX_VCPUS", 3)
    vm = bare_vm()
    vm.enable_cap(Cap.APIC_ID_GROUPS, 1)
    for number in (0, 1, 1 << 31):
        vm.create_vcpu(number)
    refused(errno.EINVAL, lambda: vm.create_vcpu(1 << 31 | 1))


def test_without_groups_the_whole_number_is_the_processors() -> None:
    vm = bare_vm()
    refused(errno.EINVAL, lambda: vm.create_vcpu(1 << 28))
    vcpu = vm.create_vcpu(1, apic_id=0x12345)
    assert (vcpu.apic.apic_id, vcpu.hv.vp_index, vcpu.apic_group) == (0x12345, 1, 0)


def test_without_groups_each_vcpu_is_its_own_sibling_whatever_its_apic_id() -> None:
    vm = bare_vm()
    vcpus = [vm.create_vcpu(1, apic_id=5), vm.create_vcpu(5, apic_id=1), vm.create_vcpu(2, apic_id=7)]
    assert [vm.sibling(vcpu, 0) for vcpu in vcpus] == vcpus
    refused(errno.EINVAL, lambda: vm.sibling(vcpus[0], 1))


@pytest.mark.parametrize("design", uapi.FlushInhibitDesign)
def test_the_design_of_the_flush_inhibit_is_that_of_every_group(design: uapi.FlushInhibitDesign) -> None:
    vm = uapi.Kvm(Simulator(), Cpus({RESET: script()}, {}), tlb_flush_inhibit=design).create_vm()
    vm.enable_cap(Cap.APIC_ID_GROUPS, 2)
    assert [namespace.hv.flush_inhibits.design for namespace in vm.namespaces] == [design] * 4
    assert (vm.create_vcpu(1 << 30).section is None) == (design is uapi.FlushInhibitDesign.WAITING_ON)


@BOTH_FORMS
def test_every_processor_finds_itself_in_every_namespace(form: Form) -> None:
    machine = world(form)
    for processors in machine.vcpus:
        for number in range(CPUS):
            found = [machine.sibling(processors[number], namespace) for namespace in range(NAMESPACES)]
            assert found == [machine.vcpus[namespace][number] for namespace in range(NAMESPACES)]
