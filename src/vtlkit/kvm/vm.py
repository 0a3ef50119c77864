"""One virtual machine: memory, interrupt controllers, vCPUs. Mirrors `struct kvm` and its ioctls.

Hyper-V's VTLs are several of these over the same RAM; a Vm knows nothing of the others.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Final

from vtlkit.engine.api import Access, Engine, EngineFactory
from vtlkit.host.api import Host, LockRank
from vtlkit.kvm.cpuid import CpuidEntry, supported
from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.vm import HvVm
from vtlkit.kvm.ioapic import IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH, IoApic
from vtlkit.kvm.iobus import MmioBus, PortBus
from vtlkit.kvm.ipi import IpiBus, Irq
from vtlkit.kvm.kick_all import KickAll, KickDesign
from vtlkit.kvm.memory import GuestMemory
from vtlkit.kvm.memory_transactions import MemoryTransactions
from vtlkit.kvm.memslots import MAXPHYADDR, MemoryRegion
from vtlkit.kvm.pic import Pic, PicChip, PicState
from vtlkit.kvm.pit import Pit
from vtlkit.kvm.requests import NO_WAKEUP, Req
from vtlkit.kvm.routing import PIT_IRQ_SOURCE_ID, IrqRouting, Route
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vendor.svm import SVM
from vtlkit.x86.apic import DeliveryMode

MAX_VCPUS: Final = 1024
TSC_KHZ: Final = 1_000_000
"""One cycle a nanosecond."""
NS_PER_INSTRUCTION: Final = 10
"""Virtual time of one guest instruction on a deterministic host: 100 MIPS."""
NS_PER_EXIT: Final = 1_000
"""Virtual time of one exit on a deterministic host: about what hardware takes, so that a guest which polls a device
sees time pass."""


class Vm:
    """See the module. `create_irqchip` before the first vCPU gives it PIC, I/O APIC and PIT."""

    def __init__(self, host: Host, engines: EngineFactory, name: str) -> None:
        self.host = host
        self.name = name
        self.engines = engines
        self.vendor = SVM
        self.lock = host.lock(f"{name}-lock", LockRank.VM)
        self.memory = GuestMemory(host, name)
        self.memory.on_change = self._memory_changed
        self.memory.on_write = self._memory_written
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
        self.user_space_msr = False
        self.protected_mode_only = False
        """A guest's CR0.PE stays set: clearing it is #GP (TLFS: no real mode above VTL 0). Set before any vCPU runs."""
        self.hv = HvVm(self)
        self.tsc_khz = TSC_KHZ
        self.tsc_offset: int = 0
        """What vCPUs that are created or reset add to the host's TSC: all read the same (`kvm_synchronize_tsc`)."""
        self.ns_per_instruction = NS_PER_INSTRUCTION
        self.ns_per_exit = NS_PER_EXIT

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
        self.routing = IrqRouting(self.host, self.bus, self.pic, self.ioapic, hv_sint=self._hv_sint)
        for ports in (range(0x20, 0x22), range(0xA0, 0xA2), range(0x4D0, 0x4D2)):
            self.port_bus.register(ports, self.pic.port_read, self.pic.port_write)
        self.mmio_bus.register(
            IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH, self.ioapic.mmio_read, self.ioapic.mmio_write
        )

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

    def _hv_sint(self, vp_index: int, sint: int) -> int:
        hv = self.hv.vp(vp_index)
        return hv.synic.set_irq(sint) if hv is not None else -1

    def set_gsi_routing(self, routes: Iterable[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table.

        Raises:
            KvmError: ENXIO without interrupt controllers, EINVAL for a bad route (nothing changed).
        """
        if self.routing is None:
            raise KvmError(errno.ENXIO, "no interrupt controllers: there are no interrupt lines")
        with self.lock:
            self.routing.set_gsi_routing(routes)

    def irq_line(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE.

        Raises:
            KvmError: ENXIO without interrupt controllers.
        """
        if self.routing is None:
            raise KvmError(errno.ENXIO, "no interrupt controllers: there are no interrupt lines")
        return self.routing.irq_line(gsi, level)

    def signal_msi(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI; how many local APICs accepted it."""
        if self.routing is None:
            raise KvmError(errno.ENXIO, "no interrupt controllers: there is nothing to signal")
        return self.routing.signal_msi(address, data)

    def reset(self) -> None:
        """What a machine reset does to the VM itself: controllers and Hyper-V state as after creation."""
        if self.pic is not None:
            self.pic.set_state(PicState(PicChip(), PicChip()))
        if self.ioapic is not None:
            self.ioapic.reset()
        if self.pit is not None:
            self.pit.reset()
        self.hv.reset()
        self.tsc_offset = -self.tsc_at(self.host.now_ns())

    # --- vCPUs ------------------------------------------------------------------------------------------------------

    def create_vcpu(
        self, vcpu_id: int, *, apic_id: int | None = None, is_bsp: bool | None = None, engine: Engine | None = None
    ) -> Vcpu:
        """KVM_CREATE_VCPU. The APIC ID is the vCPU's number unless given.

        Raises:
            KvmError: EINVAL for a bad number, EEXIST for one in use.
        """
        if not 0 <= vcpu_id < MAX_VCPUS:
            raise KvmError(errno.EINVAL, f"vCPU number {vcpu_id} is not below {MAX_VCPUS}")
        if vcpu_id in self._by_id:
            raise KvmError(errno.EEXIST, f"vCPU {vcpu_id} exists")
        apic_id = vcpu_id if apic_id is None else apic_id
        if self.bus.by_apic_id(apic_id) is not None:
            raise KvmError(errno.EEXIST, f"APIC ID {apic_id} is in use")
        name = f"{self.name}-vcpu{vcpu_id}"
        vcpu = Vcpu(
            self,
            vcpu_id,
            engine if engine is not None else self.engines.create(name),
            apic_id,
            vcpu_id == 0 if is_bsp is None else is_bsp,
        )
        self._by_id[vcpu_id] = vcpu
        self.kicks.admit(vcpu)
        return vcpu

    def forget_vcpu(self, vcpu: Vcpu) -> None:
        """The vCPU is about to be destroyed: nobody finds it through the VM any more."""
        self._by_id.pop(vcpu.vcpu_id, None)
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
        return supported(self.tsc_khz, MAXPHYADDR)

    def send_ipi(self, vp_indices: int, vector: int) -> None:
        """A fixed interrupt to a set of virtual processors, a bit per VP index (-1: all). From any task."""
        for target in self.hv.vps(vp_indices):
            target.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)

    def destinations(self, dest_id: int, *, logical: bool) -> list[int]:
        """VP indices of those that an interrupt for this local APIC destination (32 bits) reaches now."""
        found = self.bus.destinations(Irq(0, dest_id=dest_id, logical=logical))
        return [vcpu.hv.vp_index for vcpu in self.vcpus if vcpu.apic in found]

    def deliver_interrupt(
        self, mode: DeliveryMode, vector: int, dest_id: int, *, logical: bool = False, level_triggered: bool = False
    ) -> int:
        """An interrupt message as a chip would send it; how many local APICs accepted it. From any task."""
        irq = Irq(vector, mode, dest_id, logical, trig_level=level_triggered)
        return max(self.bus.deliver(irq), 0)

    def request_tlb_flush(self, vp_indices: int) -> None:
        """Drop cached translations of a set of virtual processors, named as for `send_ipi`. Never blocks."""
        for target in self.hv.vps(vp_indices):
            target.vcpu.request_tlb_flush()

    def wait_for_tlb_flush(self, vp_indices: int, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until none of them executes under translations from before the request; as `wait_for_memory`."""
        for target in self.hv.vps(vp_indices):
            while target.vcpu.may_run_on_old_translations() and not given_up():
                self.host.relax()

    def make_all_request(self, request: Req) -> None:
        """`kvm_make_all_cpus_request`: every vCPU, with a kick; a blocked one is woken unless the request can wait."""
        for vcpu in self.vcpus:
            vcpu.make_request(request)
            if request in NO_WAKEUP:
                vcpu.kick_running()
            else:
                vcpu.kick()

    # --- memory -----------------------------------------------------------------------------------------------------

    def set_user_memory_region(self, region: MemoryRegion) -> None:
        """KVM_SET_USER_MEMORY_REGION. Blocks while another task's memory transaction is open: not for inside a `run`.

        Raises:
            KvmError: as `Memslots.changed`.
        """
        self.transactions.set_regions([region])

    def set_user_memory_region_list(self, regions: Iterable[MemoryRegion]) -> None:
        """Several regions in one step: no vCPU sees some of the changes without the others. Blocks as above.

        Raises:
            KvmError: as `Memslots.changed`; nothing changed.
        """
        self.transactions.set_regions(regions)

    def set_memory_attributes(self, gpa: int, size: int, access: Access) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: what guest accesses the range permits.

        Raises:
            KvmError: EINVAL if the range is not made of whole pages.
        """
        self.transactions.set_attributes(gpa, size, access)

    def begin_memory_transaction(self) -> None:
        """What this task calls of the three above takes effect with the commit, in one step (docs/design/
        memory-transactions.md). Blocks while another task's transaction is open.

        Raises:
            KvmError: EBUSY, the caller has one open.
        """
        self.transactions.begin()

    def commit_memory_transaction(self) -> None:
        """Raises `KvmError`: EINVAL, the caller has none open."""
        self.transactions.commit()

    def abort_memory_transaction(self) -> None:
        """Nothing of it has happened. Raises `KvmError`: EINVAL, the caller has none open."""
        self.transactions.abort()

    def memory_transaction(self) -> AbstractContextManager[None]:
        """A transaction around a block; aborted if the block raises."""
        return self.transactions.opened()

    def _memory_changed(self) -> None:
        self.make_all_request(Req.MEMORY_CHANGED)

    def wait_for_memory(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until no vCPU can execute under the memory map from before the last change (as KVM_REQUEST_WAIT does).

        A vCPU between two instructions looks at MEMORY_CHANGED before its next one, so only those in the guest, and
        those that have still to finish an I/O instruction, are waited for. The caller holds no lock that they may need.
        Returns early when `given_up` says so: user space may have stopped running a vCPU for good.

        Raises:
            KvmError: EDEADLK, the caller has a memory transaction open: an unfinished instruction may wait for its end.
        """
        if self.transactions.mine():
            raise KvmError(errno.EDEADLK, "waiting for vCPUs with a memory transaction open")
        for vcpu in self.vcpus:
            while vcpu.may_run_on_old_map() and not given_up():
                self.host.relax()

    def wait_for_intercepts(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until no vCPU can execute without what `Vcpu.set_user_intercepts` last set; as `wait_for_memory`."""
        for vcpu in self.vcpus:
            while vcpu.user.behind() and vcpu.may_execute() and not given_up():
                self.host.relax()

    def _memory_written(self, gpa: int, size: int) -> None:
        for vcpu in self.vcpus:
            vcpu.engine.memory_written(gpa, size)

    # --- time -------------------------------------------------------------------------------------------------------

    def tsc_at(self, now_ns: int) -> int:
        """The host's TSC at a host time, before a vCPU's offset."""
        return now_ns * self.tsc_khz // 1_000_000

    def kvm_clock_ns(self) -> int:
        """Nanoseconds since the host's clock started."""
        return self.host.now_ns()
