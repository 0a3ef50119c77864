"""The VM's own calls, its buses, errors and CPUID topology."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kvm.core_rig import DONE, RESET, Cpus, Machine, engine_of, script
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.kvm import uapi
from vtlkit.kvm.cpuid import CpuidTable, answer, for_vcpu, supported
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.iobus import MmioBus, PortBus
from vtlkit.kvm.mpstate import MpState
from vtlkit.kvm.requests import Req
from vtlkit.kvm.vm import MAX_VCPUS, Vm


def bare_vm() -> Vm:
    return uapi.Kvm(Simulator(), Cpus({RESET: script()}, {})).create_vm()


def refused(error: int, call: Callable[[], object]) -> None:
    with pytest.raises(KvmError) as caught:
        call()
    assert caught.value.errno == error


# --- creation and destruction -----------------------------------------------------------------------------------------


def test_names_of_vms_differ() -> None:
    kvm = uapi.Kvm(Simulator(), Cpus({}, {}))
    assert [kvm.create_vm().name, kvm.create_vm("vtl1").name, kvm.create_vm().name] == ["vm0", "vtl1", "vm2"]


def test_interrupt_controllers_come_once_and_before_the_vcpus() -> None:
    vm = bare_vm()
    refused(errno.ENOENT, vm.create_pit2)
    refused(errno.ENXIO, lambda: vm.irq_line(1, 1))
    refused(errno.ENXIO, lambda: vm.signal_msi(0xFEE00000, 0x30))
    vm.create_irqchip()
    refused(errno.EEXIST, vm.create_irqchip)
    vm.create_pit2()
    refused(errno.EEXIST, vm.create_pit2)
    other = bare_vm()
    other.create_vcpu(0)
    refused(errno.EINVAL, other.create_irqchip)


def test_vcpu_numbers() -> None:
    vm = bare_vm()
    vm.create_vcpu(3)
    refused(errno.EEXIST, lambda: vm.create_vcpu(3))
    refused(errno.EINVAL, lambda: vm.create_vcpu(-1))
    refused(errno.EINVAL, lambda: vm.create_vcpu(MAX_VCPUS))
    found = vm.get_vcpu_by_id(3)
    assert found is vm.vcpus[0]
    assert vm.get_vcpu_by_id(0) is None
    assert found.mp_state is MpState.UNINITIALIZED
    assert vm.create_vcpu(0).mp_state is MpState.RUNNABLE


def test_a_closed_vcpu_holds_up_no_log() -> None:
    machine = Machine(vcpus=2)
    machine.vcpus[1].close()
    for number in range(3):
        machine.vm.memory.map_overlay(number << 12, machine.ram)
    machine.vcpu.map.sync()
    assert machine.vm.memory.log == []


def test_a_request_to_all_kicks_all() -> None:
    machine = Machine(vcpus=3)
    machine.vm.make_all_request(Req.TLB_FLUSH)
    assert all(vcpu.requests.test(Req.TLB_FLUSH) for vcpu in machine.vcpus)


def test_what_the_host_writes_is_told_to_every_engine() -> None:
    machine = Machine(vcpus=2)
    told: list[tuple[int, int, int]] = []

    def listener(number: int) -> Callable[[int, int], None]:
        return lambda gpa, size: told.append((number, gpa, size))

    for number, vcpu in enumerate(machine.vcpus):
        engine_of(vcpu).memory_written = listener(number)  # type: ignore[method-assign, assignment]
    machine.vm.memory.write(0x100, b"abc")
    assert told == [(0, 0x100, 3), (1, 0x100, 3)]


def test_registers_survive_a_round_trip() -> None:
    vcpu = Machine().vcpu
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    regs.rax, regs.r15, regs.rip, regs.rflags = 1, 15, 0x1234, 0x202
    sregs.cr3, sregs.cr8 = 0x5000, 7
    vcpu.set_regs(regs)
    vcpu.set_sregs(sregs)
    assert (vcpu.get_regs(), vcpu.get_sregs()) == (regs, sregs)


# --- buses ------------------------------------------------------------------------------------------------------------


def test_a_port_device_answers_without_an_exit() -> None:
    machine = Machine(script(ops.In(0x50, 2), ops.Out(0x51, 2), ops.Out(DONE, 2)))
    written: list[tuple[int, int, int]] = []
    machine.vm.port_bus.register(
        range(0x50, 0x52), lambda port, size: port << 8 | size, lambda *arguments: written.append(arguments)
    )
    assert machine.vcpu.run() == uapi.Io(DONE, 2, True, 0x5002)
    assert written == [(0x51, 2, 0x5002)]


def test_a_claimed_port_is_claimed_whole_or_not_at_all() -> None:
    bus = PortBus()
    bus.register(range(4, 5), lambda _port, _size: 0, lambda _port, _size, _value: None)
    refused(errno.EEXIST, lambda: bus.register(range(8), lambda _p, _s: 1, lambda _p, _s, _v: None))
    assert list(bus.ports) == [4]


@given(
    start=st.integers(0, 0xFFF),
    size=st.integers(1, 0x1000),
    offset=st.integers(0, 0xFFF),
    length=st.sampled_from([1, 2, 4, 8]),
)
def test_a_device_sees_its_own_part_of_its_page(start: int, size: int, offset: int, length: int) -> None:
    bus = MmioBus()
    written: list[tuple[int, int, int]] = []

    def claim() -> None:
        bus.register(0x5000 + start, size, lambda at, _length: at, lambda *access: written.append(access))

    if start + size > 0x1000:
        refused(errno.EINVAL, claim)
        return
    claim()
    refused(errno.EEXIST, claim)
    assert bus.pages() == (0x5000,)
    found = bus.at(0x5000)
    assert found is not None
    read, write = found
    inside = start <= offset and offset + length <= start + size
    assert read(offset, length) == (offset - start if inside else (1 << 8 * length) - 1)
    write(offset, length, 9)
    assert written == ([(offset - start, length, 9)] if inside else [])
    assert bus.at(0x6000) is None


# --- CPUID topology ---------------------------------------------------------------------------------------------------


@given(vcpus=st.integers(1, 1024), data=st.data())
def test_topology_is_told_alike_by_all_leaves(vcpus: int, data: st.DataObject) -> None:
    apic_id = data.draw(st.integers(0, vcpus - 1))
    offered = supported(1_000_000, 40)
    table = CpuidTable(for_vcpu(offered, apic_id, vcpus))

    def ask(function: int, index: int = 0) -> tuple[int, int, int, int]:
        return answer(table, function, index, 0, 1, True)

    _eax, ebx, _ecx, edx = ask(1)
    assert ebx >> 24 == apic_id & 0xFF
    assert ebx >> 16 & 0xFF == min(vcpus, 255)
    assert bool(edx >> 28 & 1) == (vcpus > 1)
    width = ask(0x80000008)[2] >> 12 & 0xF
    assert ask(0x80000008)[2] & 0xFF == (vcpus - 1) & 0xFF
    levels = [ask(0xB, level) for level in range(3)]
    assert [level[2] >> 8 & 0xFF for level in levels] == [1, 2, 0]
    assert [level[2] & 0xFF for level in levels] == [0, 1, 2]
    assert {level[3] for level in (*levels, ask(0xB, 77))} == {apic_id}
    assert levels[1][:2] == (width, vcpus)
    assert (vcpus - 1) >> width == 0, "every APIC ID of the package fits"
    assert width == 0 or (vcpus - 1) >> (width - 1), "in no more bits than it needs"


def test_user_space_is_told_only_what_has_a_name_in_the_api() -> None:
    assert set(uapi.__all__) <= set(vars(uapi))
    assert KvmError(errno.EINVAL, "why").strerror
    assert str(KvmError(errno.EINVAL, "why")) == "EINVAL: why"
