"""A vCPU's side of the local APIC contract that writes down what it is told, and a namespace of such vCPUs."""

from __future__ import annotations

from collections.abc import Callable

from vtlkit.host.api import Host, LockRank
from vtlkit.host.sim import Simulator
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.ioapic import IoApic
from vtlkit.kvm.ipi import IpiBus
from vtlkit.kvm.lapic import LocalApic
from vtlkit.kvm.requests import Req
from vtlkit.x86.apic import APIC_SPIV, APIC_SPIV_APIC_ENABLED
from vtlkit.x86.msr import APIC_BASE_MSR, X2APIC_ENABLE

SPIV_ON = APIC_SPIV_APIC_ENABLED | 0xFF


class Owner:
    """The vCPU; its TSC runs at 1 GHz, from 0 with the host clock."""

    def __init__(self, host: Host, vcpu_id: int) -> None:
        self.host = host
        self.vcpu_id = vcpu_id
        self.requests: set[Req] = set()
        self.kicks = 0
        self.events: list[object] = []
        self.base_changes: list[tuple[int, int]] = []
        self.eois: list[int] = []
        self.auto_eoi: set[int] = set()
        self.ioapic: IoApic | None = None
        self.on_kick: Callable[[], None] | None = None

    def make_request(self, request: Req) -> None:
        self.requests.add(request)

    def kick(self) -> None:
        self.kicks += 1
        if self.on_kick is not None:
            self.on_kick()

    def guest_tsc(self) -> int:
        return self.host.now_ns()

    def tsc_to_ns(self, guest_tsc: int) -> int:
        return guest_tsc

    def wants_windows(self) -> bool:
        return False

    def deliver_nmi(self) -> None:
        self.events.append("nmi")

    def deliver_smi(self) -> None:
        self.events.append("smi")

    def deliver_init(self) -> None:
        self.events.append("init")

    def deliver_sipi(self, vector: int) -> None:
        self.events.append(("sipi", vector))

    def apic_base_changed(self, old: int, new: int) -> None:
        self.base_changes.append((old, new))

    def eoi_ioapic(self, vector: int) -> None:
        self.eois.append(vector)
        if self.ioapic is not None:
            self.ioapic.eoi(self.vcpu_id, vector)

    def hv_auto_eoi(self, vector: int) -> bool:
        return vector in self.auto_eoi


class Machine:
    """`cpus` local APICs on one bus, enabled unless `enabled` is false, and an I/O APIC."""

    def __init__(
        self, cpus: int = 1, *, x2apic: bool = False, enabled: bool = True, host: Simulator | ThreadHost | None = None
    ) -> None:
        self.host: Simulator | ThreadHost = host if host is not None else Simulator()
        self.bus = IpiBus(self.host)
        self.lock = self.host.lock("irqchip", LockRank.IRQCHIP)
        self.ioapic = IoApic(self.lock, self.bus)
        self.owners = [Owner(self.host, n) for n in range(cpus)]
        self.apics: list[LocalApic] = []
        for owner in self.owners:
            owner.ioapic = self.ioapic
            apic = LocalApic(owner, self.bus, apic_id=owner.vcpu_id)
            apic.reset(init_event=False)
            if x2apic:
                assert apic.set_base(apic.get_base() | X2APIC_ENABLE, host_initiated=False)
            if enabled:
                write(apic, APIC_SPIV, SPIV_ON)
            owner.requests.clear()
            self.apics.append(apic)

    def run(self, function: Callable[[], None]) -> None:
        """Run `function` as a task of the host, and the host until it is idle."""
        self.host.spawn(function, "test")
        self.host.run()

    def advance(self, duration_ns: int) -> None:
        """Let virtual time pass, and the timers that come due fire; from inside a task."""
        self.host.consume_ns(duration_ns)


def read(apic: LocalApic, offset: int) -> int:
    """A register in the mode the APIC is in."""
    if apic.x2apic_mode:
        value = apic.x2apic_msr_read(APIC_BASE_MSR + (offset >> 4))
        assert value is not None
        return value
    return apic.mmio_read(offset, 4)


def write(apic: LocalApic, offset: int, value: int) -> None:
    """Write a register in the mode the APIC is in."""
    if apic.x2apic_mode:
        assert apic.x2apic_msr_write(APIC_BASE_MSR + (offset >> 4), value)
    else:
        apic.mmio_write(offset, 4, value)
