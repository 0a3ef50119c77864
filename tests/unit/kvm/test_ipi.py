"""Destination matching against a brute-force oracle, and delivery."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kvm.irqchip_rig import SPIV_ON, Machine, Owner, write
from vtlkit.kvm.ipi import IpiBus, Irq, match_dest
from vtlkit.kvm.lapic import LocalApic
from vtlkit.x86 import apic as regs
from vtlkit.x86.apic import DeliveryMode, Shorthand
from vtlkit.x86.msr import APIC_BASE_MSR, APICBASE_ENABLE, X2APIC_ENABLE


@dataclass(frozen=True)
class Cpu:
    """What the guest did to one APIC."""

    mode: str
    apic_id: int
    xapic_id: int
    ldr: int
    cluster: bool


CPUS = st.builds(
    Cpu,
    mode=st.sampled_from(["off", "xapic", "xapic", "x2apic"]),
    apic_id=st.sampled_from([0, 1, 2, 15, 16, 17, 33, 254, 300]),
    xapic_id=st.sampled_from([0, 1, 2, 0xF0, 0xFE, 0xFF]),
    ldr=st.one_of(st.sampled_from([0, 1, 2, 4, 0x80, 0x11, 0x12, 0x21, 0xF1, 0xFF]), st.integers(0, 255)),
    cluster=st.booleans(),
)
DESTINATIONS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 0x11, 0x21, 0xF0, 0xFE, 0xFF, 300, 0x10001, 0x10003, 0x20002, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)


def reaches(cpu: Cpu, dest: int, logical: bool, ipi: bool) -> bool:
    """The manual's rule and KVM's two quirks, one bit and one case at a time."""
    if cpu.mode == "off":
        return False
    if cpu.mode == "x2apic":
        if dest == 0xFFFFFFFF or (dest == 0xFF and not ipi):
            return True
        if not logical:
            return dest == cpu.apic_id
        return dest >> 16 == cpu.apic_id // 16 and bool(dest >> (cpu.apic_id % 16) & 1)
    if dest == 0xFF:
        return True
    if not logical:
        return dest == cpu.apic_id if dest > 0xFF else dest == cpu.xapic_id
    if cpu.cluster:
        return dest >> 4 == cpu.ldr >> 4 and any(dest >> bit & cpu.ldr >> bit & 1 for bit in range(4))
    return any(dest >> bit & cpu.ldr >> bit & 1 for bit in range(8))


def build(cpus: list[Cpu]) -> tuple[IpiBus, list[LocalApic]]:
    host = Machine(0).host
    bus = IpiBus(host)
    apics = []
    for n, cpu in enumerate(cpus):
        apic = LocalApic(Owner(host, n), bus, apic_id=cpu.apic_id)
        apic.reset(init_event=False)
        bus.destinations(Irq(0x40, dest_id=1))  # a map to go stale
        if cpu.mode == "xapic":
            write(apic, regs.APIC_ID, cpu.xapic_id << 24)
            write(apic, regs.APIC_DFR, regs.APIC_DFR_CLUSTER if cpu.cluster else regs.APIC_DFR_FLAT)
            write(apic, regs.APIC_LDR, cpu.ldr << 24)
        elif cpu.mode == "x2apic":
            assert apic.set_base(regs.APIC_DEFAULT_PHYS_BASE | APICBASE_ENABLE | X2APIC_ENABLE, False)
        else:
            assert apic.set_base(regs.APIC_DEFAULT_PHYS_BASE, False)
        apics.append(apic)
    return bus, apics


@settings(max_examples=300, deadline=None)
@given(
    cpus=st.lists(CPUS, min_size=1, max_size=6),
    dest=DESTINATIONS,
    logical=st.booleans(),
    ipi=st.booleans(),
    shorthand=st.sampled_from([Shorthand.NOSHORT] * 4 + [Shorthand.ALLINC, Shorthand.ALLBUT]),
)
def test_destinations_match_the_oracle(
    cpus: list[Cpu], dest: int, logical: bool, ipi: bool, shorthand: Shorthand
) -> None:
    bus, apics = build(cpus)
    ipi = ipi or shorthand != Shorthand.NOSHORT
    source = apics[0] if ipi else None
    irq = Irq(0x40, dest_id=dest, logical=logical, shorthand=shorthand)
    got = {apics.index(apic) for apic in apics if apic in bus.destinations(irq, source)}
    if shorthand == Shorthand.NOSHORT:
        expected = {n for n, cpu in enumerate(cpus) if reaches(cpu, dest, logical, ipi)}
    else:
        expected = {n for n, cpu in enumerate(cpus) if cpu.mode != "off" and (n or shorthand == Shorthand.ALLINC)}
    assert got == expected
    assert len(bus.destinations(irq, source)) == len(got), "nobody gets it twice"
    for n, apic in enumerate(apics):
        address = apic.address.load()
        matches = match_dest(
            address, ipi=ipi, is_source=apic is source, shorthand=shorthand, dest_id=dest, logical=logical
        )
        assert (matches and address.hw_enabled) == (n in expected)


def pending(machine: Machine, vector: int) -> list[int]:
    return [n for n, apic in enumerate(machine.apics) if apic.irr.test(vector)]


@pytest.mark.parametrize("x2apic", [False, True])
@pytest.mark.parametrize("count", [1, 2, 255])
def test_broadcast_by_address_and_by_shorthand(x2apic: bool, count: int) -> None:
    machine = Machine(count, x2apic=x2apic)
    sender = machine.apics[count // 2]
    everyone = list(range(count))

    def send(low: int, dest: int) -> None:
        if x2apic:
            assert sender.x2apic_msr_write(APIC_BASE_MSR + 0x30, dest << 32 | low)
        else:
            write(sender, regs.APIC_ICR2, dest << 24)
            write(sender, regs.APIC_ICR, low)

    send(regs.APIC_INT_ASSERT | 0xCF, 0xFFFFFFFF if x2apic else 0xFF)
    assert pending(machine, 0xCF) == everyone
    send(regs.APIC_DEST_ALLINC | 0xCE, 0)
    assert pending(machine, 0xCE) == everyone
    send(regs.APIC_DEST_ALLBUT | 0xCD, 0)
    assert pending(machine, 0xCD) == [n for n in everyone if n != count // 2]
    send(regs.APIC_DEST_SELF | 0xCC, 0)
    assert pending(machine, 0xCC) == [count // 2]


def test_x2apic_self_ipi() -> None:
    machine = Machine(2, x2apic=True)
    assert machine.apics[1].x2apic_msr_write(APIC_BASE_MSR + 0x3F, 0xF1)
    assert pending(machine, 0xF1) == [1]
    assert machine.owners[1].kicks == 1


def test_logical_ipi_with_several_bits_in_one_ldr_arrives_once() -> None:
    machine = Machine(2)
    for apic in machine.apics:
        write(apic, regs.APIC_LDR, 0b110 << 24)
    write(machine.apics[0], regs.APIC_ICR2, 0b111 << 24)
    write(machine.apics[0], regs.APIC_ICR, regs.APIC_DEST_LOGICAL | 0x61)
    assert [owner.kicks for owner in machine.owners] == [1, 1]


def test_aliased_xapic_ids_share_their_interrupts() -> None:
    machine = Machine(3)
    for apic in machine.apics[:2]:
        write(apic, regs.APIC_ID, 9 << 24)
    assert machine.bus.deliver(Irq(0x50, dest_id=9)) == 2
    assert pending(machine, 0x50) == [0, 1]
    assert machine.bus.deliver(Irq(0x50, dest_id=0)) == 0


def test_lowest_priority_goes_round_among_enabled_apics() -> None:
    machine = Machine(4)
    for n, apic in enumerate(machine.apics):
        write(apic, regs.APIC_LDR, 1 << n + 24)
    write(machine.apics[1], regs.APIC_SPIV, 0xFF)
    irq = Irq(0x40, DeliveryMode.LOWEST, dest_id=0xF, logical=True)
    for _ in range(6):
        assert machine.bus.deliver(irq) == 1
    assert [apic.arb_prio.load() for apic in machine.apics] == [2, 0, 2, 2]
    write(machine.apics[1], regs.APIC_SPIV, SPIV_ON)
    machine.bus.deliver(irq)
    assert machine.apics[1].irr.test(0x40)


def test_redirection_hint_picks_one_and_physical_broadcast_of_lowest_priority_reaches_all() -> None:
    machine = Machine(3)
    for apic in machine.apics:
        write(apic, regs.APIC_LDR, 1 << 24)
    assert machine.bus.deliver(Irq(0x40, dest_id=1, logical=True, msi_redir_hint=True)) == 1
    assert len(pending(machine, 0x40)) == 1
    assert machine.bus.deliver(Irq(0x41, DeliveryMode.LOWEST, dest_id=0xFF)) == 3
    assert pending(machine, 0x41) == [0, 1, 2]


def test_init_sipi_nmi_reach_the_addressed_cpu_only() -> None:
    machine = Machine(3, enabled=False)
    for low in (regs.APIC_DM_INIT | regs.APIC_INT_ASSERT, regs.APIC_DM_STARTUP | 0x9F, regs.APIC_DM_NMI):
        write(machine.apics[0], regs.APIC_ICR2, 2 << 24)
        write(machine.apics[0], regs.APIC_ICR, low)
    assert [owner.events for owner in machine.owners] == [[], [], ["init", ("sipi", 0x9F), "nmi"]]


def test_namespaces_are_apart_and_unregistered_apics_unreachable() -> None:
    first = Machine(2)
    second = Machine(2, host=first.host)
    assert first.bus.deliver(Irq(0x40, dest_id=1)) == 1
    assert second.apics[1].irr.load() == 0
    assert first.bus.by_apic_id(1) is first.apics[1]
    first.apics[1].destroy()
    assert first.bus.deliver(Irq(0x41, dest_id=1)) == 0
    assert first.bus.by_apic_id(1) is None
    assert first.bus.members() == (first.apics[0],)


def test_dest_map_hears_who_accepted() -> None:
    machine = Machine(3)
    write(machine.apics[1], regs.APIC_SPIV, 0xFF)
    accepted: dict[int, int] = {}
    assert machine.bus.deliver(Irq(0x70, dest_id=0xFF), None, accepted.__setitem__) == 2
    assert accepted == {0: 0x70, 2: 0x70}


@pytest.mark.parametrize("seed", range(20))
def test_address_change_races_with_senders(seed: int) -> None:
    """A message sent after the new ID is there must arrive; the map may be built by several senders at once."""
    from vtlkit.host.sim import Simulator

    machine = Machine(2, host=Simulator(seed=seed, instrument=True))
    target = machine.apics[1]
    moved = machine.host.cell(False, "moved")
    results: list[int] = []

    def move() -> None:
        write(target, regs.APIC_ID, 0x77 << 24)
        moved.store_release(True)

    def send() -> None:
        for _ in range(3):
            certain = moved.load_acquire()
            reached = machine.bus.deliver(Irq(0x40, dest_id=0x77))
            results.append(reached)
            assert reached == 1 or not certain

    for task in (move, send, send):
        machine.host.spawn(task, task.__name__)
    machine.host.run()
    assert machine.bus.deliver(Irq(0x41, dest_id=0x77)) == 1
