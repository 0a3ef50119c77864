"""APIC namespaces: who can send interrupts to whom, and which virtual processors a Hyper-V call names.

A namespace is an `IpiBus` and the Hyper-V state of those on it. A `Vm` has one; with `Cap.APIC_ID_GROUPS` it has one
for each group, and the high bits of a vCPU's number say in which it is ("KVM_CAP_APIC_ID_GROUPS" of the Core Hyper-V
VSM series, posted in November 2023). Two vCPUs whose numbers differ in the group alone have one APIC ID: they are
siblings, the same processor in two namespaces. docs/design/apic-namespaces.md compares this with a `Vm` for each.

Promise: nothing here or below can tell which form it is in: a vCPU knows its own namespace and no other. What a sender
names is looked up on the sender's bus, and a group is named by user space alone, in a GSI route or a call.

Shared: nothing that changes. The namespaces are made before the first vCPU, and then only read; what is in them says
itself who may touch it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from vtlkit.kvm.errors import KvmError
from vtlkit.kvm.hyperv.vm import HvVm
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.ipi import IpiBus, Irq
from vtlkit.x86.apic import DeliveryMode

if TYPE_CHECKING:
    from vtlkit.kvm.vm import Vm

VCPU_ID_BITS: Final = 32
MAX_GROUP_BITS: Final = 8
"""All namespaces are made at once, so there is a limit to them; the rest of the number names 2^24 processors."""


class ApicNamespace:
    """One namespace: the group it is, its local APICs, its virtual processors. Calls are for any task."""

    __slots__ = ("bus", "group", "hv")

    def __init__(self, group: int, bus: IpiBus, hv: HvVm) -> None:
        self.group = group
        self.bus = bus
        self.hv = hv

    def send_ipi(self, vp_indices: int, vector: int) -> None:
        """A fixed interrupt to a set of virtual processors, a bit per VP index (-1: all)."""
        for target in self.hv.vps(vp_indices):
            target.vcpu.apic.accept_irq(DeliveryMode.FIXED, vector, 1, False)

    def destinations(self, dest_id: int, *, logical: bool) -> list[int]:
        """VP indices of those that an interrupt for this local APIC destination (32 bits) reaches now."""
        found = self.bus.destinations(Irq(0, dest_id=dest_id, logical=logical))
        return [target.vp_index for target in self.hv.vps(ALL_VPS) if target.vcpu.apic in found]

    def deliver_interrupt(
        self, mode: DeliveryMode, vector: int, dest_id: int, *, logical: bool = False, level_triggered: bool = False
    ) -> int:
        """An interrupt message as a chip would send it; how many local APICs accepted it."""
        irq = Irq(vector, mode, dest_id, logical, trig_level=level_triggered)
        return max(self.bus.deliver(irq), 0)

    def request_tlb_flush(self, vp_indices: int) -> None:
        """Drop cached translations of a set of virtual processors, named as for `send_ipi`. Never blocks."""
        for target in self.hv.vps(vp_indices):
            target.vcpu.request_tlb_flush()

    def wait_for_tlb_flush(self, vp_indices: int, given_up: Callable[[], bool] = lambda: False) -> None:
        """Block until none of them executes under translations from before the request; as `Vm.wait_for_memory`."""
        for target in self.hv.vps(vp_indices):
            while target.vcpu.may_run_on_old_translations() and not given_up():
                target.vcpu.host.relax()


class ApicNamespaces:
    """The namespaces of one `Vm`, by group; without groups there is group 0 alone."""

    __slots__ = ("_all", "_shift", "_vm")

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._shift = VCPU_ID_BITS
        self._all: tuple[ApicNamespace, ...] = (ApicNamespace(0, vm.bus, vm.hv),)

    def enable_groups(self, bits: int) -> None:
        """KVM_CAP_APIC_ID_GROUPS: the `bits` high ones of the 32 bits of a vCPU's number name its group.

        Raises:
            KvmError: EINVAL for a number of bits that is not from 1 to MAX_GROUP_BITS; EBUSY once there is a vCPU, or
                there are groups.
        """
        if not 1 <= bits <= MAX_GROUP_BITS:
            raise KvmError(errno.EINVAL, f"groups take 1 to {MAX_GROUP_BITS} bits of a vCPU's number, not {bits}")
        if self._vm.vcpus:
            raise KvmError(errno.EBUSY, "APIC ID groups must be made before the first vCPU")
        if len(self._all) > 1:
            raise KvmError(errno.EBUSY, f"there are {len(self._all)} APIC ID groups already")
        vm, first = self._vm, self._all[0]
        self._shift = VCPU_ID_BITS - bits
        others = (
            ApicNamespace(
                group,
                IpiBus(
                    vm.host,
                    f"{vm.name}-group{group}-apic",
                    x2apic_format=first.bus.x2apic_format,
                    broadcast_quirk=first.bus.broadcast_quirk,
                    lint0_wired=False,
                ),
                HvVm(vm, shares_memory_with=first.hv),
            )
            for group in range(1, 1 << bits)
        )
        self._all = (first, *others)

    @property
    def has_groups(self) -> bool:
        return len(self._all) > 1

    def __iter__(self) -> Iterator[ApicNamespace]:
        return iter(self._all)

    def at(self, group: int) -> ApicNamespace:
        """The namespace of a group.

        Raises:
            KvmError: EINVAL if there is none.
        """
        if not 0 <= group < len(self._all):
            raise KvmError(errno.EINVAL, f"there is no APIC ID group {group}")
        return self._all[group]

    def bus_of(self, group: int) -> IpiBus:
        """As `at`."""
        return self.at(group).bus

    def split(self, vcpu_id: int) -> tuple[ApicNamespace, int]:
        """The namespace that a vCPU's number names, and the rest: its APIC ID there.

        Raises:
            KvmError: EINVAL if the number is negative or too large.
        """
        group = vcpu_id >> self._shift
        if not 0 <= group < len(self._all):
            raise KvmError(errno.EINVAL, f"vCPU number {vcpu_id} is none of {VCPU_ID_BITS} bits")
        return self._all[group], vcpu_id & ((1 << self._shift) - 1)

    def vcpu_name(self, vcpu_id: int) -> str:
        """What a vCPU is called where people read it. Raises as `split`."""
        namespace, number = self.split(vcpu_id)
        group = f"-group{namespace.group}" if self.has_groups else ""
        return f"{self._vm.name}{group}-vcpu{number}"

    def vcpu_id(self, group: int, apic_id: int) -> int:
        """The number of the vCPU with this APIC ID in a group, whether or not it has been made.

        Raises:
            KvmError: EINVAL if there is no such group.
        """
        return self.at(group).group << self._shift | apic_id

    def reset(self) -> None:
        """`HvVm.reset` of all."""
        for namespace in self._all:
            namespace.hv.reset()
