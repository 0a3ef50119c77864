"""One virtual machine: memory, interrupt controllers, vCPUs. Mirrors `struct kvm` and its ioctls.

Hyper-V's VTLs are several of these over the same RAM; a Vm knows nothing of the others.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Engine, EngineFactory, own_tsc_khz
from vtlkit.host.api import Host, LockRank
from vtlkit.kvm.caps import enable_cap
from vtlkit.kvm.cpuid import CpuidEntry, supported
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.vm import HvVm
from vtlkit.kvm.ioapic import IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH, IoApic
from vtlkit.kvm.iobus import MmioBus, PortBus, PortRead, PortWrite
from vtlkit.kvm.ipi import IpiBus
from vtlkit.kvm.kick_all import KickAll, KickDesign
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memory_transactions import MemoryTransactions
from vtlkit.kvm.memslots import MAXPHYADDR
from vtlkit.kvm.namespaces import ApicNamespace, ApicNamespaces
from vtlkit.kvm.pic import Pic, PicChip, PicState
from vtlkit.kvm.pit import Pit
from vtlkit.kvm.requests import NO_WAKEUP, Req
from vtlkit.kvm.routing import PIT_IRQ_SOURCE_ID, IrqRouting, Route
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vendor import DEFAULT_VENDOR, vendor_named
from vtlkit.kvm.vm_memory import VmMemory
from vtlkit.x86.apic import DeliveryMode

if TYPE_CHECKING:
    from vtlkit.trace.tracer import Tracer

MAX_VCPUS: Final = 1024
TSC_KHZ: Final = 1_000_000
"""One cycle a nanosecond."""
NS_PER_INSTRUCTION: Final = 10
"""Virtual time of one guest instruction on a deterministic host: 100 MIPS."""
NS_PER_EXIT: Final = 1_000
"""Virtual time of one exit on a deterministic host: about what hardware takes, so that a guest which polls a device
sees time pass."""


class Vm(VmMemory):
    """See the module. `create_irqchip` before the first vCPU gives it PIC, I/O APIC and PIT."""

    def __init__(
        self,
        host: Host,
        engines: EngineFactory,
        name: str,
        *,
        vendor: str = DEFAULT_VENDOR,
        trace: Tracer | None = None,
    ) -> None:
        self.host = host
        self.name = name
        self.trace = None if trace is None else trace.vm(name)
        self.engines = engines
        self.vendor = vendor_named(vendor)
        self._routing_lock = host.lock(f"{name}-routing", LockRank.IRQ_ROUTING)
        self.memory = GuestMemory(host, name)
        self.memory.on_change = self._memory_changed
        self.memory.on_write = self._memory_written
        self.memory.trace = self.trace
        self.transactions = MemoryTransactions(host, name, self.memory)
        self.bus = IpiBus(host, f"{name}-apic", x2apic_format=True)
        self.port_bus = PortBus()
        self.mmio_bus = MmioBus()
        self.vcpus: list[Vcpu] = []
        self.kicks = KickAll(self)
        self._by_id: dict[int, Vcpu] = {}
        self.pic: Pic | None = None
        self.ioapic: IoApic | None = None
        self.pit: Pit | None = None
        self.routing: IrqRouting | None = None
        self.halt_poll_max_ns = 0
        """How long a halted vCPU polls at most before it sleeps (`Cap.HALT_POLL`)."""
        self.user_space_msr = False
        self.protected_mode_only = False
        """A guest's CR0.PE stays set: clearing it is #GP (TLFS: no real mode above VTL 0). Set before any vCPU runs."""
        self.nested = False
        """Guests may run guests of their own."""
        self.hv: HvVm = HvVm(self)
        self.namespaces: ApicNamespaces = ApicNamespaces(self)
        """`bus` and `hv` are those of group 0."""
        self.tsc_khz: int = own_tsc_khz(engines) or TSC_KHZ
        self.tsc_offset: int = 0
        """What vCPUs that are created or reset add to the host's TSC: all read the same (`kvm_synchronize_tsc`)."""
        self.ns_per_instruction: int = NS_PER_INSTRUCTION
        self.ns_per_exit = NS_PER_EXIT

    enable_cap = enable_cap

    # --- interrupt controllers --------------------------------------------------------------------------------------

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PIC pair, I/O APIC, and routing to both.

        Raises:
            KvmError: EEXIST if they exist, EINVAL if a vCPU does.
        """
        if self.ioapic is not None:
            raise KvmError(errno.EEXIST, "the interrupt controllers exist")
        if self.vcpus:
            raise KvmError(errno.EINVAL, "interrupt controllers must be made before the first vCPU")
        lock = self.host.lock(f"{self.name}-irqchip", LockRank.IRQCHIP)
        self.pic = Pic(self.host, lock, self._pic_output)
        self.ioapic = IoApic(lock, self.bus)
        self.routing = IrqRouting(
            self.host,
            self.bus,
            self.pic,
            self.ioapic,
            hv_sint=self._hv_sint,
            bus_of=self.namespaces.bus_of,
        )
        for ports in (range(0x20, 0x22), range(0xA0, 0xA2), range(0x4D0, 0x4D2)):
            self.port_bus.register(ports, self.pic.port_read, self.pic.port_write)
        self.mmio_bus.register(
            IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH, self.ioapic.mmio_read, self.ioapic.mmio_write
        )

    def answer_ports(self, read: PortRead, write: PortWrite) -> None:
        """Have user space's ports answered from inside `run`, without an exit, by engines that can; else, and in a VM
        that is traced, they exit as ever (`Io`). Before the vCPUs run.

        Called in the task of the vCPU, which holds its mutex and is inside `run`: what they lock comes after
        MEMORY_TRANSACTION, what they want of the vCPU they ask for by a request or a signal, and they wait for no
        vCPU to leave the guest.
        """
        self.port_bus.others = read, write

    def create_pit2(self) -> None:
        """KVM_CREATE_PIT2: the timer on GSI 0 and the speaker port.

        Raises:
            KvmError: ENOENT without interrupt controllers, EEXIST if it exists.
        """
        if self.routing is None:
            raise KvmError(errno.ENOENT, "the PIT needs the interrupt controllers")
        if self.pit is not None:
            raise KvmError(errno.EEXIST, "the PIT exists")
        self.pit = Pit(self.host, self._pit_output, self.bus.nmi_watchdog)
        self.routing.register_notifier(0, self.pit)
        for ports in (range(0x40, 0x44), range(0x61, 0x62)):
            self.port_bus.register(ports, self.pit.port_read, self.pit.port_write)

    def _pit_output(self, level: int) -> None:
        assert self.routing is not None
        self.routing.irq_line(0, level, PIT_IRQ_SOURCE_ID)

    def _pic_output(self, level: bool) -> None:
        if level:
            for vcpu in self.vcpus:
                if vcpu.apic.accept_pic_intr():
                    vcpu.make_request(Req.EVENT)
                    vcpu.kick()
                    return

    def _hv_sint(self, vp_index: int, sint: int, group: int) -> int:
        hv = self.namespaces.at(group).hv.vp(vp_index)
        return hv.synic.set_irq(sint) if hv is not None else -1

    def set_gsi_routing(self, routes: Iterable[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table.

        Raises:
            KvmError: ENXIO without interrupt controllers, EINVAL for a bad route (nothing changed).
        """
        if self.routing is None:
            raise KvmError(errno.ENXIO, "no interrupt controllers: there are no interrupt lines")
        with self._routing_lock:
            self.routing.set_gsi_routing(routes)

    def irq_line(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE.

        Raises:
            KvmError: ENXIO without interrupt controllers.
        """
        if self.routing is None:
            raise KvmError(errno.ENXIO, "no interrupt controllers: there are no interrupt lines")
        return self.routing.irq_line(gsi, level)

    def signal_msi(self, address: int, data: int, group: int = 0) -> int:
        """KVM_SIGNAL_MSI; how many local APICs of the group accepted it."""
        if self.routing is None:
            raise KvmError(errno.ENXIO, "no interrupt controllers: there is nothing to signal")
        return self.routing.signal_msi(address, data, group)

    def reset(self) -> None:
        """What a machine reset does to the VM itself: controllers and Hyper-V state as after creation."""
        if self.pic is not None:
            self.pic.set_state(PicState(PicChip(), PicChip()))
        if self.ioapic is not None:
            self.ioapic.reset()
        if self.pit is not None:
            self.pit.reset()
        self.namespaces.reset()
        self.tsc_offset = -self.tsc_at(self.host.now_ns())

    # --- vCPUs ------------------------------------------------------------------------------------------------------

    def create_vcpu(
        self, vcpu_id: int, *, apic_id: int | None = None, is_bsp: bool | None = None, engine: Engine | None = None
    ) -> Vcpu:
        """KVM_CREATE_VCPU. The APIC ID is the vCPU's number, less the bits of the group, unless given.

        Raises:
            KvmError: EINVAL for a bad number, or an APIC ID of its own in a group; EEXIST for one in use.
        """
        namespace, number = self.namespaces.split(vcpu_id)
        if number >= MAX_VCPUS or len(self.vcpus) >= MAX_VCPUS:
            raise KvmError(
                errno.EINVAL, f"vCPU {vcpu_id}: numbers are below {MAX_VCPUS}, and so many vCPUs there can be"
            )
        if vcpu_id in self._by_id:
            raise KvmError(errno.EEXIST, f"vCPU {vcpu_id} exists")
        if apic_id is None:
            apic_id = number
        elif apic_id != number and self.namespaces.has_groups:
            raise KvmError(errno.EINVAL, f"vCPU {vcpu_id} of a group has APIC ID {number}, not {apic_id}")
        if namespace.bus.by_apic_id(apic_id) is not None:
            raise KvmError(errno.EEXIST, f"APIC ID {apic_id} is in use")
        name = self.namespaces.vcpu_name(vcpu_id)
        vcpu = Vcpu(
            self,
            vcpu_id,
            engine if engine is not None else self.engines.create(name),
            apic_id,
            number == 0 if is_bsp is None else is_bsp,
        )
        # Replaced whole: other tasks look siblings up.
        self._by_id = {**self._by_id, vcpu_id: vcpu}
        self.kicks.admit(vcpu)
        return vcpu

    def forget_vcpu(self, vcpu: Vcpu) -> None:
        """The vCPU is about to be destroyed: nobody finds it through the VM any more."""
        self._by_id = {number: other for number, other in self._by_id.items() if other is not vcpu}
        self.kicks.dismiss(vcpu)

    def kick_all_running_vcpus(self) -> None:
        """Return when no task is inside `run` of any vCPU; until the resume every `run` returns INTR. Blocks.

        The caller holds no lock of a rank from MEMORY_TRANSACTION up. Each call is resumed once.

        Raises:
            KvmError: EDEADLK, the caller is inside a call of one of the vCPUs.
        """
        self.kicks.kick()

    def resume_all_kicked_vcpus(self) -> None:
        """End what `kick_all_running_vcpus` began; with several callers the last one does.

        Raises:
            KvmError: EINVAL, there is nothing to end.
        """
        self.kicks.resume()

    def set_kick_design(self, design: KickDesign) -> None:
        """How long a kick holds (docs/design/kick.md); sticky unless set.

        Raises:
            KvmError: EBUSY, vCPUs are kicked.
        """
        self.kicks.set_design(design)

    def get_vcpu_by_id(self, vcpu_id: int) -> Vcpu | None:
        return self._by_id.get(vcpu_id)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID."""
        return supported(self.tsc_khz, MAXPHYADDR, nested=self.nested)

    # --- APIC namespaces --------------------------------------------------------------------------------------------

    def namespace(self, group: int) -> ApicNamespace:
        """An APIC ID group as an APIC namespace; there is 0 without `Cap.APIC_ID_GROUPS`.

        Raises:
            KvmError: EINVAL if there is no such group.
        """
        return self.namespaces.at(group)

    def sibling(self, vcpu: Vcpu, group: int) -> Vcpu | None:
        """The vCPU with the same APIC ID in a group, perhaps `vcpu` itself; None if there is none. From any task.

        Raises:
            KvmError: EINVAL if there is no such group.
        """
        number = self.namespaces.vcpu_id(group, vcpu.apic.apic_id)
        # Without groups a vCPU may have an APIC ID of its own, which another's number may be.
        return vcpu if group == vcpu.apic_group else self._by_id.get(number)

    def send_ipi(self, vp_indices: int, vector: int) -> None:
        """`ApicNamespace.send_ipi` of group 0; so for those that follow."""
        self.namespaces.at(0).send_ipi(vp_indices, vector)

    def destinations(self, dest_id: int, *, logical: bool) -> list[int]:
        return self.namespaces.at(0).destinations(dest_id, logical=logical)

    def deliver_interrupt(
        self, mode: DeliveryMode, vector: int, dest_id: int, *, logical: bool = False, level_triggered: bool = False
    ) -> int:
        return self.namespaces.at(0).deliver_interrupt(
            mode, vector, dest_id, logical=logical, level_triggered=level_triggered
        )

    def request_tlb_flush(self, vp_indices: int) -> None:
        self.namespaces.at(0).request_tlb_flush(vp_indices)

    def wait_for_tlb_flush(self, vp_indices: int, given_up: Callable[[], bool] = lambda: False) -> None:
        self.namespaces.at(0).wait_for_tlb_flush(vp_indices, given_up)

    # --- requests to all --------------------------------------------------------------------------------------------

    def make_all_request(self, request: Req) -> None:
        """`kvm_make_all_cpus_request`: every vCPU, with a kick; a blocked one is woken unless the request can wait."""
        for vcpu in self.vcpus:
            vcpu.make_request(request)
            if request in NO_WAKEUP:
                vcpu.kick_running()
            else:
                vcpu.kick()

    # --- time -------------------------------------------------------------------------------------------------------

    def tsc_at(self, now_ns: int) -> int:
        """The host's TSC at a host time, before a vCPU's offset."""
        return now_ns * self.tsc_khz // 1_000_000

    def kvm_clock_ns(self) -> int:
        """Nanoseconds since the host's clock started."""
        return self.host.now_ns()
