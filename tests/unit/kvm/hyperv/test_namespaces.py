"""Hyper-V calls and APIC namespaces, in both forms; what groups of one Vm do not keep apart."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.unit.kvm.core_rig import DONE, Script, script
from tests.unit.kvm.namespace_worlds import BOTH_FORMS, NAMESPACES, as_vtls
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.engine.api import Access
from vtlkit.engine.scripted import ops
from vtlkit.host.sim import Simulator
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercall_io import HV_FLUSH_ALL_PROCESSORS, HV_FLUSH_TARGET_VTLS, HV_FLUSH_USE_TARGET_VTL
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.hvdef.status import HvStatus
from vtlkit.kvm.kvm_run import Hyperv, Io, KvmRun, MemoryFault
from vtlkit.kvm.requests import Req

CPUS = 3
VECTOR = 0x61
FAST = 1 << 16
USE_TARGET_VTL = 1 << 4
INPUT, SECRET, MESSAGES, OVERLAY = 0x8000, 0x9000, 0xA000, 0xB000

Body = Callable[["Machine"], Script]


class Machine(Namespaces):
    """Three processors in each of two namespaces, which user space says are VTLs; the first of each runs `body`."""

    def __init__(self, form: Form, body: Body | None = None) -> None:
        def begin(_engine: object) -> Script:
            if body is not None:
                yield from body(self)
            yield ops.Out(DONE, 1, 0)

        super().__init__(Simulator(), form, [[begin, *[script()] * (CPUS - 1)]] * NAMESPACES)
        as_vtls(self)

    def exits(self, namespace: int, answer: Callable[[Hyperv], None]) -> list[KvmRun]:
        """What processor 0 of a namespace leaves `run` for until its guest ends; `answer` answers hypercalls."""
        found: list[KvmRun] = []

        def body() -> None:
            while True:
                exit_ = self.vcpus[namespace][0].run()
                if isinstance(exit_, Io):
                    return
                found.append(exit_)
                if not isinstance(exit_, Hyperv):
                    return
                answer(exit_)

        self.run(body)
        return found

    def have(self, what: Callable[[int, int], bool]) -> list[list[int]]:
        """For each namespace, the processors of which something is true."""
        return [[number for number in range(CPUS) if what(n, number)] for n in range(NAMESPACES)]

    def pending(self) -> list[list[int]]:
        return self.have(lambda n, number: self.vcpus[n][number].apic.irr.test(VECTOR))


def ipi(target_vtl: int | None, *, sparse: bool) -> Body:
    """HvCallSendSyntheticClusterIpi(Ex) to processors 1 and 2 of a VTL, or of the caller's own."""
    vtl = 0 if target_vtl is None else USE_TARGET_VTL | target_vtl

    def plain(_machine: Machine) -> Script:
        yield ops.Set(Call.HvCallSendSyntheticClusterIpi | FAST, "rcx")
        yield ops.Set(VECTOR | vtl << 32, "rdx")
        yield ops.Set(0b110, "r8")
        assert (yield ops.Vmmcall()) == HvStatus.SUCCESS

    def extended(machine: Machine) -> Script:
        page = struct.pack("<IBBHQQQ", VECTOR, vtl, 0, 0, 0, 1, 0b110)
        yield ops.Host(lambda: machine.vms[0].memory.write(INPUT, page))
        yield ops.Set(Call.HvCallSendSyntheticClusterIpiEx | 1 << 17, "rcx")
        yield ops.Set(INPUT, "rdx")
        assert (yield ops.Vmmcall()) == HvStatus.SUCCESS

    return extended if sparse else plain


@BOTH_FORMS
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("sending", range(NAMESPACES))
def test_a_hyperv_ipi_to_the_own_vtl_is_the_hypervisors_and_to_another_exits(
    form: Form, sparse: bool, sending: int
) -> None:
    expected: list[list[int]] = [[], []]
    expected[sending] = [1, 2]
    for named in (None, sending):
        machine = Machine(form, ipi(named, sparse=sparse))
        assert machine.exits(sending, lambda _exit: None) == []
        assert machine.pending() == expected

    other = 1 - sending
    machine = Machine(form, ipi(other, sparse=sparse))

    def answer(_exit: Hyperv) -> None:
        assert machine.pending() == [[], []], "the hypervisor does not know where that VTL is"
        machine.namespace(other).send_ipi(0b110, VECTOR)

    exits = machine.exits(sending, answer)
    assert [type(exit_) for exit_ in exits] == [Hyperv]
    assert machine.pending() == expected[::-1]


def flush(vtls: int) -> Body:
    """HvCallFlushVirtualAddressSpace of all processors, of the VTLs in the mask or, if there is none, the own one."""
    flags = HV_FLUSH_ALL_PROCESSORS | (HV_FLUSH_USE_TARGET_VTL | HV_FLUSH_TARGET_VTLS.make(vtls) if vtls else 0)

    def body(machine: Machine) -> Script:
        yield ops.Host(lambda: machine.vms[0].memory.write(INPUT, struct.pack("<QQQ", 0, flags, 0)))
        yield ops.Set(Call.HvCallFlushVirtualAddressSpace, "rcx")
        yield ops.Set(INPUT, "rdx")
        assert (yield ops.Vmmcall()) == HvStatus.SUCCESS

    return body


@BOTH_FORMS
@pytest.mark.parametrize("sending", range(NAMESPACES))
def test_a_flush_is_of_the_own_namespace_and_one_that_names_vtls_exits(form: Form, sending: int) -> None:
    machine = Machine(form, flush(0))
    assert machine.exits(sending, lambda _exit: None) == []
    flushed = machine.have(lambda n, number: machine.vcpus[n][number].requests.test(Req.TLB_FLUSH))
    assert flushed[sending] == [1, 2], "the caller has looked at its own request"
    assert flushed[1 - sending] == []
    machine = Machine(form, flush(0b11))
    exits = machine.exits(sending, lambda _exit: None)
    assert [type(exit_) for exit_ in exits] == [Hyperv]


@BOTH_FORMS
def test_flushes_that_an_inhibit_holds_up_are_of_its_namespace(form: Form) -> None:
    machine = Machine(form, flush(0))
    machine.vcpus[0][1].hyperv_set_tlb_flush_inhibit(True)
    assert machine.exits(1, lambda _exit: None) == []
    assert machine.vcpus[1][0].statistics.suspends == 0


@BOTH_FORMS
def test_a_protection_violation_exits_and_user_space_wakes_the_higher_vtl(form: Form) -> None:
    def touch(_machine: Machine) -> Script:
        yield ops.Read(SECRET, 4)

    machine = Machine(form, touch)
    lower = machine.vcpus[0][0]
    higher = machine.sibling(lower, 1)
    assert higher is not None
    machine.vm(0).set_memory_attributes(SECRET, 0x1000, Access.NONE)
    told: list[bool] = []
    higher.listen(lambda: told.append(higher.wake_event_pending()))

    def user() -> None:
        synic = ((msrs.HV_X64_MSR_SCONTROL, 1), (msrs.HV_X64_MSR_SIMP, MESSAGES | 1), (msrs.HV_X64_MSR_SINT0, VECTOR))
        for index, value in synic:
            assert higher.set_msr(index, value)
        higher.vtl_inactive = True
        exit_ = lower.run()
        assert isinstance(exit_, MemoryFault)
        assert (exit_.gpa, exit_.access) == (SECRET, Access.READ)
        assert machine.pending() == [[], []]
        assert not told, "the hypervisor has told nobody"
        message = struct.pack("<II", 0x80000001, 240).ljust(256, b"\1")
        assert higher.hv.post_synic_message(0, message) == HvStatus.SUCCESS

    machine.run(user)
    assert machine.pending() == [[], [0]]
    assert told == [True]
    assert machine.vm(1).memory.read(MESSAGES, 4) == struct.pack("<I", 0x80000001)


# --- state ------------------------------------------------------------------------------------------------------------


@BOTH_FORMS
def test_vp_indices_and_partition_registers_are_the_namespaces_own(form: Form) -> None:
    machine = Machine(form)
    for processors in machine.vcpus:
        assert [vcpu.get_msr(msrs.HV_X64_MSR_VP_INDEX) for vcpu in processors] == [0, 1, 2]
    first, second = (machine.vcpus[namespace][1] for namespace in range(NAMESPACES))
    assert second.set_msr(msrs.HV_X64_MSR_VP_INDEX, 77)
    assert machine.namespace(1).hv.vp(77) is second.hv
    assert machine.namespace(0).hv.vp(1) is first.hv
    machine.run(lambda: second.set_msr(msrs.HV_X64_MSR_GUEST_OS_ID, 0))
    assert first.get_msr(msrs.HV_X64_MSR_GUEST_OS_ID) == 1
    assert (first.hv.hypercall_enabled, second.hv.hypercall_enabled) == (True, False)


@BOTH_FORMS
def test_reset_of_all_vms_resets_all_namespaces(form: Form) -> None:
    machine = Machine(form)
    machine.run(*[vm.reset for vm in machine.vms])
    assert [machine.namespace(n).hv.guest_os_id for n in range(NAMESPACES)] == [0, 0]


def page_time(machine: Machine, namespace: int) -> int:
    """Reference time as processor 0 of a namespace computes it from its page and its TSC."""
    page = machine.vm(namespace).memory.read(OVERLAY + 0x1000 * namespace, 24)
    sequence, scale, offset = struct.unpack("<IxxxxQq", page)
    assert sequence
    return (machine.vcpus[namespace][0].guest_tsc() * int(scale) >> 64) + int(offset)


@BOTH_FORMS
def test_reference_time_goes_on_when_the_first_processors_tsc_is_written(form: Form) -> None:
    """The TSC is that of the namespace's own first processor: a VTL does not turn the clock of another."""
    machine = Machine(form)

    def body() -> None:
        for n in range(NAMESPACES):
            machine.namespace(n).hv.set_reference_tsc(OVERLAY + 0x1000 * n | 1)
        before = [machine.namespace(n).hv.reference_time.counter() for n in range(NAMESPACES)]
        for writer in range(NAMESPACES):
            machine.vcpus[writer][0].write_tsc(1 << 50 + writer)
            for n in range(NAMESPACES):
                now = machine.namespace(n).hv.reference_time.counter()
                assert 0 <= now - before[n] < 1000
                assert 0 <= page_time(machine, n) - now < 1000, f"namespace {n} after a write in {writer}"

    machine.run(body)


# --- what groups of one Vm do not keep apart --------------------------------------------------------------------------


def test_what_is_forbidden_to_a_vtl_binds_its_vm_alone() -> None:
    """With a Vm each, VTL 1 reads on what it has forbidden to VTL 0; in one Vm it has forbidden it to itself."""

    def touch(_machine: Machine) -> Script:
        yield ops.Read(SECRET, 4)

    for form, expected in ((Form.VMS, []), (Form.GROUPS, [MemoryFault])):
        machine = Machine(form, touch)
        machine.vm(0).set_memory_attributes(SECRET, 0x1000, Access.NONE)
        assert [type(exit_) for exit_ in machine.exits(1, lambda _exit: None)] == expected, form


def test_an_overlay_lies_in_the_memory_of_its_vm_alone() -> None:
    for form in Form:
        machine = Machine(form)
        machine.run(lambda machine=machine: machine.namespace(0).hv.set_hypercall(OVERLAY | 1))  # type: ignore[misc]
        assert machine.vm(0).memory.read(OVERLAY, 1) != b"\0", "the hypercall page"
        assert (machine.vm(1).memory.read(OVERLAY, 1) == b"\0") is (form is Form.VMS)
        machine.run(lambda machine=machine: machine.namespace(1).hv.set_hypercall(OVERLAY | 1))  # type: ignore[misc]
        machine.run(lambda machine=machine: machine.namespace(0).hv.set_hypercall(0))  # type: ignore[misc]
        assert machine.vm(1).memory.read(OVERLAY, 1) != b"\0", "that of the other is still there"
