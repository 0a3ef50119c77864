"""Which local APICs an interrupt message reaches, and its delivery: the APIC namespace of one `Vm`.

Mirrors arch/x86/kvm/irq_comm.c (`kvm_irq_delivery_to_apic`) and the destination half of arch/x86/kvm/lapic.c
(`kvm_apic_match_dest`, `kvm_recalculate_apic_map`).

Promise: an interrupt message never leaves the `IpiBus` that it was sent on, and `destinations` answers exactly what
`match_dest` answers for each member. The map is only a faster way to ask.

Shared: `_members` and `_map` (cells that hold immutable values) and `_generation`. A sender reads the addresses that
members publish (`LapicCore.address`) and never a register of another vCPU. Publication order: a member stores its new
address, then adds one to `_generation` (a full barrier); a sender loads `_generation`, then the addresses. A sender
that sees the old generation may use the old address, as an interrupt that is in flight while software moves an APIC
may; a sender ordered after the move sees the new generation and builds a new map. No lock: two senders may build the
same map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from vtlkit.host.api import Cell, Host
from vtlkit.x86.apic import (
    APIC_BROADCAST,
    APIC_DFR_CLUSTER,
    APIC_DFR_FLAT,
    APIC_XAPIC_ID_SHIFT,
    X2APIC_BROADCAST,
    DeliveryMode,
    Shorthand,
)

if TYPE_CHECKING:
    from vtlkit.kvm.lapic_core import LapicCore

DestMap: TypeAlias = Callable[[int, int], None]
"""Called with (vcpu_id, vector) for each local APIC that accepted a fixed or lowest-priority interrupt."""

_X2APIC_CLUSTER_SHIFT = 16
_X2APIC_MEMBER_MASK = 0xFFFF
_CLUSTER_SHIFT = 4
_CLUSTER_MEMBER_MASK = 0xF


@dataclass(slots=True)
class Irq:
    """One interrupt message (`struct kvm_lapic_irq`).

    `vector` is 8 bits wide, `dest_id` 32. `trig_level` is the trigger mode bit, `level` whether the line is asserted.
    """

    vector: int
    delivery_mode: int = DeliveryMode.FIXED
    dest_id: int = 0
    logical: bool = False
    level: int = 1
    trig_level: bool = False
    shorthand: int = Shorthand.NOSHORT
    msi_redir_hint: bool = False


@dataclass(frozen=True, slots=True)
class ApicAddress:
    """What a local APIC tells the senders about itself: immutable, published as a whole in `LapicCore.address`."""

    x2apic_id: int
    xapic_id: int = 0
    ldr: int = 0
    dfr: int = APIC_DFR_FLAT
    hw_enabled: bool = False
    sw_enabled: bool = False
    x2apic_mode: bool = False
    lvt0_extint: bool = False
    """LVT0 is unmasked and in ExtINT mode: this APIC passes the PIC's interrupt."""
    lvt0_nmi: bool = False
    """LVT0 is unmasked and in NMI mode: the PIT's NMI watchdog reaches this APIC."""


def match_dest(
    target: ApicAddress,
    *,
    ipi: bool,
    is_source: bool,
    shorthand: int,
    dest_id: int,
    logical: bool,
    broadcast_quirk: bool = True,
) -> bool:
    """Whether a message reaches an APIC (`kvm_apic_match_dest`).

    `ipi` is whether a local APIC sent it. With the broadcast quirk, a message of the I/O APIC or an MSI to 0xff is a
    broadcast for targets in x2APIC mode too, as there is no interrupt remapping (KVM_CAP_X2APIC_API switches it off).
    """
    if shorthand == Shorthand.NOSHORT:
        mda = dest_id
        if broadcast_quirk and not ipi and dest_id == APIC_BROADCAST and target.x2apic_mode:
            mda = X2APIC_BROADCAST
        if mda == (X2APIC_BROADCAST if target.x2apic_mode else APIC_BROADCAST):
            return True
        return _match_logical(target, mda) if logical else _match_physical(target, mda)
    if shorthand == Shorthand.SELF:
        return is_source
    return shorthand == Shorthand.ALLINC or not is_source


def _match_physical(target: ApicAddress, mda: int) -> bool:
    # An ID that xAPIC mode cannot encode names a hot-plugged vCPU, which starts in xAPIC mode.
    if target.x2apic_mode or mda > APIC_BROADCAST:
        return mda == target.x2apic_id
    return mda == target.xapic_id


def _match_logical(target: ApicAddress, mda: int) -> bool:
    if target.x2apic_mode:
        same_cluster = target.ldr >> _X2APIC_CLUSTER_SHIFT == mda >> _X2APIC_CLUSTER_SHIFT
        return same_cluster and target.ldr & mda & _X2APIC_MEMBER_MASK != 0
    logical_id = target.ldr >> APIC_XAPIC_ID_SHIFT
    if target.dfr == APIC_DFR_FLAT:
        return logical_id & mda != 0
    if target.dfr == APIC_DFR_CLUSTER:
        same_cluster = logical_id >> _CLUSTER_SHIFT == mda >> _CLUSTER_SHIFT
        return same_cluster and logical_id & mda & _CLUSTER_MEMBER_MASK != 0
    return False


class ApicMap:
    """The members of one generation, indexed by destination (`struct kvm_apic_map`). Immutable once published."""

    __slots__ = ("_cluster", "_flat", "_physical", "_x2apic_cluster", "generation", "present")

    def __init__(self, generation: int, members: Sequence[LapicCore]) -> None:
        self.generation = generation
        self.present = tuple((apic.address.load(), apic) for apic in members if apic.address.load().hw_enabled)
        self._physical: dict[int, list[LapicCore]] = {}
        self._flat: list[tuple[int, LapicCore]] = []
        self._cluster: dict[int, list[tuple[int, LapicCore]]] = {}
        self._x2apic_cluster: dict[int, list[tuple[int, LapicCore]]] = {}
        for address, apic in self.present:
            if address.x2apic_mode:
                self._physical.setdefault(address.x2apic_id, []).append(apic)
            else:
                self._physical.setdefault(address.xapic_id, []).append(apic)
                if address.x2apic_id > APIC_BROADCAST:
                    self._physical.setdefault(address.x2apic_id, []).append(apic)
            self._add_logical(address, apic)

    def _add_logical(self, address: ApicAddress, apic: LapicCore) -> None:
        ldr = address.ldr
        if address.x2apic_mode:
            cluster = self._x2apic_cluster.setdefault(ldr >> _X2APIC_CLUSTER_SHIFT, [])
            cluster.append((ldr & _X2APIC_MEMBER_MASK, apic))
            return
        logical_id = ldr >> APIC_XAPIC_ID_SHIFT
        if not logical_id:
            return
        if address.dfr == APIC_DFR_FLAT:
            self._flat.append((logical_id, apic))
        elif address.dfr == APIC_DFR_CLUSTER:
            cluster = self._cluster.setdefault(logical_id >> _CLUSTER_SHIFT, [])
            cluster.append((logical_id & _CLUSTER_MEMBER_MASK, apic))

    def physical(self, dest_id: int) -> Sequence[LapicCore]:
        """Targets of a physical destination that is no broadcast."""
        return self._physical.get(dest_id, ())

    def logical(self, dest_id: int) -> Sequence[LapicCore]:
        """Targets of a logical destination that is no broadcast."""
        targets = [apic for mask, apic in self._flat if mask & dest_id] if self._flat else []
        if self._cluster:
            targets += [apic for mask, apic in self._cluster.get(dest_id >> _CLUSTER_SHIFT, ()) if mask & dest_id]
        if self._x2apic_cluster:
            members = self._x2apic_cluster.get(dest_id >> _X2APIC_CLUSTER_SHIFT, ())
            targets += [apic for mask, apic in members if mask & dest_id]
        return targets


class IpiBus:
    """One APIC namespace: the local APICs that can send interrupts to each other."""

    __slots__ = (
        "_ack_vectors",
        "_edge_acked",
        "_generation",
        "_map",
        "_members",
        "broadcast_quirk",
        "lint0_wired",
        "x2apic_format",
    )

    def __init__(
        self,
        host: Host,
        name: str = "apic",
        *,
        x2apic_format: bool = False,
        broadcast_quirk: bool = True,
        lint0_wired: bool = True,
    ) -> None:
        """`x2apic_format`, `broadcast_quirk`: KVM_CAP_X2APIC_API's choices, fixed before the first vCPU.

        `lint0_wired`: the PIC's output goes to the LINT0 pins here; a machine has one such wire.
        """
        self._members: Cell[tuple[LapicCore, ...]] = host.cell((), f"{name}-members")
        self._generation: Cell[int] = host.cell(0, f"{name}-map-generation")
        self._map: Cell[ApicMap] = host.cell(ApicMap(0, ()), f"{name}-map")
        self._ack_vectors: Cell[int] = host.cell(0, f"{name}-ack-vectors")
        self._edge_acked: Callable[[int, int], None] | None = None
        self.x2apic_format = x2apic_format
        self.broadcast_quirk = broadcast_quirk
        self.lint0_wired = lint0_wired

    def register(self, apic: LapicCore) -> None:
        """Make `apic` reachable. From any task; retries against a concurrent registration."""
        while True:
            old = self._members.load()
            if self._members.cmpxchg(old, (*old, apic)) == old:
                break
        self.address_changed()

    def unregister(self, apic: LapicCore) -> None:
        """No message that is sent after this returns reaches `apic`."""
        while True:
            old = self._members.load()
            if self._members.cmpxchg(old, tuple(member for member in old if member is not apic)) == old:
                break
        self.address_changed()

    def members(self) -> tuple[LapicCore, ...]:
        """Every registered local APIC, in order of registration."""
        return self._members.load()

    def by_apic_id(self, apic_id: int) -> LapicCore | None:
        """The member with this initial (x2APIC) ID, whatever the guest wrote to its xAPIC ID register."""
        for apic in self._members.load():
            if apic.apic_id == apic_id:
                return apic
        return None

    def address_changed(self) -> None:
        """A member has stored a new address (`apic_map_dirty`): the next sender builds a new map."""
        self._generation.fetch_add(1)

    def map(self) -> ApicMap:
        """The map of the current generation, built here if no sender has built it."""
        generation = self._generation.load_acquire()
        current = self._map.load_acquire()
        if current.generation == generation:
            return current
        fresh = ApicMap(generation, self._members.load())
        # Losing this exchange to a newer map is fine: ours is still right for a message sent when we looked.
        if current.generation < generation:
            self._map.cmpxchg(current, fresh)
        return fresh

    def destinations(self, irq: Irq, source: LapicCore | None = None) -> Sequence[LapicCore]:
        """The hardware-enabled members that `irq` addresses, before lowest-priority arbitration."""
        if irq.shorthand == Shorthand.SELF:
            assert source is not None, "only a local APIC can send to itself"
            return (source,)
        apic_map = self.map()
        dest_id = irq.dest_id
        if irq.shorthand == Shorthand.NOSHORT and dest_id != APIC_BROADCAST and dest_id != X2APIC_BROADCAST:
            return apic_map.logical(dest_id) if irq.logical else apic_map.physical(dest_id)
        return [
            apic
            for address, apic in apic_map.present
            if match_dest(
                address,
                ipi=source is not None,
                is_source=apic is source,
                shorthand=irq.shorthand,
                dest_id=dest_id,
                logical=irq.logical,
                broadcast_quirk=self.broadcast_quirk,
            )
        ]

    def deliver(self, irq: Irq, source: LapicCore | None = None, dest_map: DestMap | None = None) -> int:
        """Deliver a message to every APIC it addresses, or to one by lowest priority. From any task; never blocks.

        Returns how many APICs accepted it; 0 if it was dropped, -1 if a broadcast or shorthand addressed nobody.
        """
        mode = irq.delivery_mode
        vector, level, trig_level = irq.vector, irq.level, irq.trig_level
        if irq.shorthand == Shorthand.SELF:
            assert source is not None, "only a local APIC can send to itself"
            return source.accept_irq(mode, vector, level, trig_level, dest_map)
        targets = self.destinations(irq, source)
        if mode == DeliveryMode.LOWEST and not irq.logical and irq.dest_id == APIC_BROADCAST:
            mode = DeliveryMode.FIXED
        if mode == DeliveryMode.LOWEST or irq.msi_redir_hint:
            lowest = self._lowest_priority(targets)
            return lowest.accept_irq(mode, vector, level, trig_level, dest_map) if lowest is not None else 0
        if not targets:
            return 0 if irq.shorthand == Shorthand.NOSHORT and irq.dest_id != APIC_BROADCAST else -1
        accepted = 0
        for apic in targets:
            accepted += apic.accept_irq(mode, vector, level, trig_level, dest_map)
        return accepted

    @staticmethod
    def _lowest_priority(targets: Sequence[LapicCore]) -> LapicCore | None:
        lowest: LapicCore | None = None
        lowest_prio = 0
        for apic in targets:
            if not apic.address.load().sw_enabled:
                continue
            prio = apic.arb_prio.load()
            if lowest is None or prio < lowest_prio:
                lowest, lowest_prio = apic, prio
        return lowest

    def nmi_watchdog(self) -> None:
        """A PIT tick for the APICs that take it as NMI through LVT0 (`kvm_apic_nmi_wd_deliver`). From any task."""
        for apic in self._members.load():
            apic.nmi_watchdog_tick()

    def watch_edge_eoi(self, acked: Callable[[int, int], None]) -> None:
        """The I/O APIC's ear for EOIs of edge-triggered vectors, (vcpu_id, vector); before `set_ack_vectors`."""
        self._edge_acked = acked

    def set_ack_vectors(self, vectors: int) -> None:
        """Which edge-triggered vectors (one bit each) `acked` wants (`ioapic_handled_vectors`)."""
        self._ack_vectors.store(vectors)

    def edge_eoi_wanted(self, vector: int) -> bool:
        """Whether somebody waits for the EOI of an edge-triggered vector. From any task."""
        return self._ack_vectors.load() >> vector & 1 != 0

    def edge_eoi(self, vcpu_id: int, vector: int) -> None:
        """A vCPU ended an edge-triggered interrupt."""
        if self._ack_vectors.load() >> vector & 1 and self._edge_acked is not None:
            self._edge_acked(vcpu_id, vector)
