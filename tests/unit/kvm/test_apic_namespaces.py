"""Interrupts between processors stay in their namespace, whether that is a Vm or an APIC ID group: one set of tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kvm.namespace_worlds import (
    BOTH_FORMS,
    CPUS,
    MODES,
    NAMESPACES,
    all_arrived,
    arrived,
    broadcast,
    changed,
    idle_programs,
    logical,
    send,
    world,
)
from vtlkit.checker.scenarios.namespaces_rig import Form, Namespaces
from vtlkit.host.sim import Simulator
from vtlkit.kvm.hypercalls import KVM_HC_SEND_IPI, emulate
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode
from vtlkit.x86.msr import APIC_BASE_MSR, APICBASE_ENABLE, X2APIC_ENABLE

VECTOR = 0x41
ASSERT = regs.APIC_INT_ASSERT


@dataclasses.dataclass(frozen=True)
class Ipi:
    """ICR's low half and its destination, and which of four processors it is for when processor 1 sends it."""

    icr: int
    dest_id: Callable[[str], int]
    targets: set[int]


def nowhere(_mode: str) -> int:
    return 0


FORMS_OF_IPI = {
    "physical": Ipi(VECTOR, lambda _mode: 2, {2}),
    "physical to nobody": Ipi(VECTOR, lambda _mode: 9, set()),
    "logical": Ipi(regs.APIC_DEST_LOGICAL | VECTOR, lambda mode: logical(mode, {2, 3}), {2, 3}),
    "self": Ipi(regs.APIC_DEST_SELF | VECTOR, nowhere, {1}),
    "all": Ipi(regs.APIC_DEST_ALLINC | VECTOR, nowhere, {0, 1, 2, 3}),
    "all but self": Ipi(regs.APIC_DEST_ALLBUT | VECTOR, nowhere, {0, 2, 3}),
    "broadcast": Ipi(VECTOR, broadcast, {0, 1, 2, 3}),
    "logical broadcast": Ipi(regs.APIC_DEST_LOGICAL | VECTOR, broadcast, {0, 1, 2, 3}),
    "NMI": Ipi(regs.APIC_DM_NMI | ASSERT, lambda _mode: 3, {3}),
    "NMI to all but self": Ipi(regs.APIC_DM_NMI | regs.APIC_DEST_ALLBUT, nowhere, {0, 2, 3}),
    "INIT": Ipi(regs.APIC_DM_INIT | ASSERT, lambda _mode: 3, {3}),
    "SIPI": Ipi(regs.APIC_DM_STARTUP | ASSERT | 0x9F, lambda _mode: 3, {3}),
    "level": Ipi(VECTOR | ASSERT | regs.APIC_INT_LEVELTRIG, lambda _mode: 0, {0}),
}


@BOTH_FORMS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", FORMS_OF_IPI)
def test_a_regular_ipi_stays_in_the_senders_namespace(form: Form, mode: str, kind: str) -> None:
    ipi = FORMS_OF_IPI[kind]
    for sending in range(NAMESPACES):
        machine = world(form, mode)
        before = [all_arrived(processors) for processors in machine.vcpus]
        send(machine.vcpus[sending][1], ipi.icr, ipi.dest_id(mode))
        for namespace, processors in enumerate(machine.vcpus):
            expected = ipi.targets if namespace == sending else set()
            assert changed(before[namespace], processors) == expected, f"{kind} from namespace {sending}"


@BOTH_FORMS
@pytest.mark.parametrize("mode", MODES)
def test_lowest_priority_goes_round_in_its_namespace_alone(form: Form, mode: str) -> None:
    machine = world(form, mode)
    targets = {2, 3}
    for _ in range(4):
        send(
            machine.vcpus[1][0],
            regs.APIC_DM_LOWEST | regs.APIC_DEST_LOGICAL | VECTOR,
            logical(mode, targets),
        )
    assert [vcpu.apic.arb_prio.load() for vcpu in machine.vcpus[1]] == [0, 0, 2, 2]
    assert [vcpu.apic.arb_prio.load() for vcpu in machine.vcpus[0]] == [0] * CPUS


@BOTH_FORMS
def test_a_self_ipi_by_register_and_a_paravirtual_one(form: Form) -> None:
    machine = world(form, "x2apic")
    sender = machine.vcpus[1][1]
    before = [all_arrived(processors) for processors in machine.vcpus]
    assert sender.apic.x2apic_msr_write(APIC_BASE_MSR + (regs.APIC_SELF_IPI >> 4), VECTOR)
    assert [changed(before[n], machine.vcpus[n]) for n in range(NAMESPACES)] == [set(), {1}]
    live = sender.engine.regs
    live.rax, live.rbx, live.rcx, live.rdx, live.rsi = KVM_HC_SEND_IPI, 0b1001, 0, 0, 0x61
    emulate(sender, 0)
    assert live.rax == 2
    assert [[vcpu.apic.irr.test(0x61) for vcpu in processors] for processors in machine.vcpus] == [
        [False] * CPUS,
        [True, False, False, True],
    ]


@BOTH_FORMS
def test_user_space_names_the_namespace_of_what_it_sends(form: Form) -> None:
    machine = world(form, "x2apic")
    namespace = machine.namespace(1)
    assert namespace.deliver_interrupt(DeliveryMode.FIXED, VECTOR, 0b110, logical=True) == 2
    namespace.send_ipi(0b1000, VECTOR)
    assert namespace.destinations(0b11, logical=True) == [0, 1]
    assert namespace.destinations(broadcast("x2apic"), logical=False) == [0, 1, 2, 3]
    assert [vcpu.apic.irr.test(VECTOR) for vcpu in machine.vcpus[1]] == [False, True, True, True]
    assert not any(vcpu.apic.irr.load() for vcpu in machine.vcpus[0])


# --- hostile messages -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cpu:
    """What the guest did to one local APIC."""

    mode: str
    xapic_id: int
    ldr: int
    dfr: int
    enabled: bool


CPU = st.builds(
    Cpu,
    mode=st.sampled_from(["xapic", "xapic", "x2apic", "off"]),
    xapic_id=st.sampled_from([0, 1, 2, 3, 0xFE, 0xFF]),
    ldr=st.one_of(st.sampled_from([0, 1, 2, 0x11, 0x12, 0x21, 0xFF]), st.integers(0, 255)),
    dfr=st.sampled_from([regs.APIC_DFR_FLAT, regs.APIC_DFR_CLUSTER, 0x5FFFFFFF]),
    enabled=st.booleans(),
)
DESTINATION = st.one_of(
    st.sampled_from([0, 1, 2, 3, 0xFF, 0xFFFFFFFF, 0x10000001, 0x1000000F, 0xF0000002, 0x100000FF, 0x0FFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)


def build(form: Form, cpus: list[list[Cpu]]) -> Namespaces:
    machine = Namespaces(Simulator(), form, idle_programs(len(cpus), len(cpus[0])))
    for processors, wanted in zip(machine.vcpus, cpus, strict=True):
        for vcpu, cpu in zip(processors, wanted, strict=True):
            apply(vcpu, cpu)
    return machine


def apply(vcpu: Vcpu, cpu: Cpu) -> None:
    apic = vcpu.apic
    if not cpu.enabled:
        apic.mmio_write(regs.APIC_SPIV, 4, 0xFF)
    if cpu.mode == "xapic":
        apic.mmio_write(regs.APIC_ID, 4, cpu.xapic_id << 24)
        apic.mmio_write(regs.APIC_DFR, 4, cpu.dfr)
        apic.mmio_write(regs.APIC_LDR, 4, cpu.ldr << 24)
    else:
        enable = APICBASE_ENABLE | X2APIC_ENABLE if cpu.mode == "x2apic" else 0
        assert apic.set_base(regs.APIC_DEFAULT_PHYS_BASE | enable, host_initiated=True)


@settings(max_examples=150, deadline=None)
@given(
    cpus=st.lists(st.lists(CPU, min_size=3, max_size=3), min_size=2, max_size=2),
    sending=st.integers(0, 1),
    messages=st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), DESTINATION), min_size=1, max_size=4),
)
def test_hostile_messages_do_what_they_do_in_a_vm_alone(
    cpus: list[list[Cpu]], sending: int, messages: list[tuple[int, int]]
) -> None:
    """Whatever a guest writes to ICR, group bits in the destination too: a Vm that has nobody else is the oracle."""
    alone = build(Form.VMS, [cpus[sending]])
    machines = [build(form, cpus) for form in Form]
    bystanders = [all_arrived(machine.vcpus[1 - sending]) for machine in machines]
    for icr, dest_id in messages:
        send(alone.vcpus[0][0], icr, dest_id)
        for machine in machines:
            send(machine.vcpus[sending][0], icr, dest_id)
    for machine, before in zip(machines, bystanders, strict=True):
        assert all_arrived(machine.vcpus[sending]) == all_arrived(alone.vcpus[0]), machine.form
        assert all_arrived(machine.vcpus[1 - sending]) == before, machine.form


# --- reset, INIT, and state -------------------------------------------------------------------------------------------


@BOTH_FORMS
def test_reset_and_init_of_one_sibling_leave_the_other_as_it_is(form: Form) -> None:
    machine = world(form)
    victim, sibling = machine.vcpus[1][2], machine.vcpus[0][2]
    for processors in machine.vcpus:
        send(processors[0], VECTOR, 2)
    before = arrived(sibling)
    assert before.irr
    for init_event in (True, False):
        victim.reset(init_event=init_event)
        assert not arrived(victim).irr
        assert arrived(sibling) == before


@BOTH_FORMS
def test_the_guest_sees_its_apic_id_without_a_group(form: Form) -> None:
    for mode in ("flat", "x2apic"):
        machine = world(form, mode)
        for processors in machine.vcpus:
            for number, vcpu in enumerate(processors):
                apic = vcpu.apic
                if mode == "x2apic":
                    assert apic.x2apic_msr_read(APIC_BASE_MSR + (regs.APIC_ID >> 4)) == number
                    assert apic.x2apic_msr_read(APIC_BASE_MSR + (regs.APIC_LDR >> 4)) == 1 << number
                else:
                    assert apic.mmio_read(regs.APIC_ID, 4) >> 24 == number
                page = apic.get_state()
                apic.set_state(page)
                assert apic.get_state() == page
                assert vcpu.hv.vp_index == number
                assert vcpu.is_bsp is (number == 0)


@BOTH_FORMS
def test_a_local_apic_that_moves_is_found_where_it_is_in_its_own_namespace(form: Form) -> None:
    machine = world(form)
    machine.vcpus[1][3].apic.mmio_write(regs.APIC_ID, 4, 7 << 24)
    for namespace, expected in ((0, [False] * CPUS), (1, [False, False, False, True])):
        send(machine.vcpus[namespace][0], VECTOR, 7)
        assert [vcpu.apic.irr.test(VECTOR) for vcpu in machine.vcpus[namespace]] == expected
    send(machine.vcpus[0][0], 0x61, 3)
    send(machine.vcpus[1][0], 0x61, 3)
    assert machine.vcpus[0][3].apic.irr.test(0x61)
    assert not machine.vcpus[1][3].apic.irr.test(0x61)


@BOTH_FORMS
def test_a_destroyed_vcpu_is_missed_in_its_own_namespace_alone(form: Form) -> None:
    machine = world(form)
    gone = machine.vcpus[1][2]
    assert machine.sibling(machine.vcpus[0][2], 1) is gone
    gone.close()
    assert machine.sibling(machine.vcpus[0][2], 1) is None
    for processors in machine.vcpus:
        send(processors[0], VECTOR, 2)
    assert machine.vcpus[0][2].apic.irr.test(VECTOR)
    assert not gone.apic.irr.load()
