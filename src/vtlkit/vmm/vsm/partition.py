"""A partition: its virtual processors and one `Vm` per enabled VTL over the same RAM.

The hypervisor knows none of this: which VTL runs on a processor, who may do what to whom, and what one VTL takes away
from another are decided in this package.

Shared between processors' tasks, under `lock`: which VTLs are enabled, protections, partition configuration. What a
processor alone touches (its active VTL, its switch requests) is `vp`'s.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from vtlkit.engine.api import Access
from vtlkit.host.api import LockRank
from vtlkit.hvdef.vsm import (
    HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK,
    HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION,
    HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET,
)
from vtlkit.kvm.uapi import (
    TRANSLATE_CALLS,
    Cap,
    HvFeatures,
    Kvm,
    KvmError,
    KvmRun,
    MemoryAttributes,
    MemoryRegion,
    UserIntercepts,
    Vcpu,
    VcpuStatistics,
    Vm,
    for_vcpu,
    hv_cpuid_entries,
)
from vtlkit.vmm.vsm.hypercalls import ACCESS_OF_MAP_FLAGS
from vtlkit.vmm.vsm.ports import Ports
from vtlkit.vmm.vsm.tlb_locks import TlbLocks
from vtlkit.vmm.vsm.vp import Vp
from vtlkit.vmm.vsm.vtl_wait import VtlWait


class Supervisor(Protocol):
    """What a partition asks of the machine it is in."""

    def ending(self) -> bool:
        """Whether the run is over: tasks return."""

    def must_park(self) -> bool:
        """Whether an action on the whole machine waits for this task to park."""

    def park(self) -> None:
        """Wait until that action has been done. Blocks."""

    def task_started(self) -> None: ...

    def task_finished(self) -> None: ...

    def vcpu_finished(self, vcpu: Vcpu) -> None:
        """The vCPU is about to be destroyed."""

    def handle(self, vp: Vp, vcpu: Vcpu, exit_: KvmRun) -> None:
        """An exit that has nothing to do with VTLs."""


class Vtl:
    """One virtual trust level of a partition."""

    def __init__(self, level: int, vm: Vm) -> None:
        self.level = level
        self.vm = vm
        self.config = HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET.mask if level else 0
        """HvRegisterVsmPartitionConfig."""
        self.protections: dict[int, MemoryAttributes] = {}
        """What this VTL permits each lower VTL, by its number."""
        self.installed = UserIntercepts()
        """HvCallInstallIntercept: what it wants to hear of lower VTLs."""

    def default_access(self) -> Access:
        """What lower VTLs may do to memory of which this VTL has said nothing else."""
        if not HV_VSM_PARTITION_CONFIG_ENABLE_VTL_PROTECTION.get(self.config):
            return Access.ALL
        return ACCESS_OF_MAP_FLAGS[HV_VSM_PARTITION_CONFIG_DEFAULT_VTL_PROTECTION_MASK.get(self.config)]


class Partition:
    """Processors, VTLs and their configuration."""

    def __init__(
        self,
        kvm: Kvm,
        regions: Iterable[MemoryRegion],
        roms: Iterable[MemoryRegion] = (),
        *,
        cpus: int,
        vtls: int,
        hyperv: HvFeatures | None,
        supervisor: Supervisor,
        translate_in_hypervisor: bool = True,
        vtl_wait: VtlWait = VtlWait.POLL,
        halt_poll_ns: int = 0,
    ) -> None:
        """`regions` are RAM, which VTLs protect from each other; `roms` every VTL has as they are.

        `hyperv`: what CPUID offers of the Hyper-V interface, None for no such interface. With one VTL there is no VSM.
        `translate_in_hypervisor`: HvCallTranslateVirtualAddress(Ex) exits only where VTL policy has a say.

        Raises:
            KvmError: EINVAL, features that do not go together.
        """
        self.kvm = kvm
        self.host = kvm.host
        self.supervisor = supervisor
        self.maximum_vtl = vtls - 1
        self.vtl_wait = vtl_wait
        """How events for inactive VTLs are heard of."""
        self._halt_poll_ns = halt_poll_ns
        self.lock = self.host.lock("partition", LockRank.PARTITION)
        self.tlb_locks = TlbLocks(self)
        self._regions = tuple(regions)
        self._roms = tuple(roms)
        self._cpus = cpus
        self._translate_in_hypervisor = translate_in_hypervisor
        self._features = None if hyperv is None else replace(hyperv, vsm=hyperv.vsm and vtls > 1)
        self._retired: list[VcpuStatistics] = []
        self.ports = Ports(self)
        self.vtls: dict[int, Vtl] = {}
        self.vtl0 = self._create_vtl(0)
        self.vps = [Vp(self, index) for index in range(cpus)]
        for vp in self.vps:
            vp.add_vcpu(self.create_vcpu(vp.index, 0), 0)

    # --- VTLs and vCPUs ---------------------------------------------------------------------------------------------

    def _create_vtl(self, level: int) -> Vtl:
        vm = self.kvm.create_vm(f"vtl{level}")
        vm.hv.vtl = level
        if self._translate_in_hypervisor:
            vm.hv.user_space_calls -= TRANSLATE_CALLS
        if self._halt_poll_ns:
            vm.enable_cap(Cap.HALT_POLL, self._halt_poll_ns)
        vm.set_user_memory_region_list((*self._regions, *self._roms))
        if level == 0:
            # Device interrupts go to VTL 0: its Vm has the controllers that devices are wired to.
            vm.create_irqchip()
            vm.create_pit2()
        else:
            vm.hv.share_registers(self.vtl0.vm.hv)
            # One TSC for all VTLs of a processor.
            vm.tsc_offset = self.vtl0.vm.tsc_offset
            vm.protected_mode_only = True
            vm.port_bus.others = self.vtl0.vm.port_bus.others
        vtl = Vtl(level, vm)
        # Other processors' tasks may be going through the VTLs without the lock: they go on with those they began with.
        self.vtls = {**self.vtls, level: vtl}
        return vtl

    def enable_vtl(self, level: int) -> None:
        """HvCallEnablePartitionVtl's effect. The caller holds the lock."""
        self._create_vtl(level)
        # A higher VTL may have said before what this one is permitted.
        for gpa, size in self.ram_ranges():
            self._apply(level, gpa, size)

    def create_vcpu(self, index: int, level: int) -> Vcpu:
        """The vCPU of a processor in a VTL, told of itself by CPUID."""
        vm = self.vtls[level].vm
        vcpu = vm.create_vcpu(index, is_bsp=index == 0)
        vcpu.startup_blocked.store(level > 0)
        entries = for_vcpu(vm.get_supported_cpuid(), index, self._cpus)
        if self._features is not None:
            entries = entries + hv_cpuid_entries(self._features)
        vcpu.set_cpuid2(entries)
        return vcpu

    def enabled_set(self) -> int:
        """Bit n: VTL n is enabled on the partition."""
        return sum(1 << level for level in self.vtls)

    def highest_below(self, level: int) -> int:
        """The highest enabled VTL below `level`, which is above 0. The caller holds the lock."""
        return max(other for other in self.vtls if other < level)

    def highest_on_any_vp(self) -> int:
        """The highest VTL that some processor has. The caller holds the lock."""
        return max(max(vp.vcpus) for vp in self.vps)

    def all_vcpus(self) -> Iterator[Vcpu]:
        for vp in self.vps:
            yield from list(vp.vcpus.values())

    def statistics(self) -> Iterator[VcpuStatistics]:
        """Counters of every vCPU there is or was."""
        yield from self._retired
        for vcpu in self.all_vcpus():
            yield vcpu.statistics

    def wake_all(self) -> None:
        """Make every waiting task look again."""
        for vp in self.vps:
            vp.queue.wake()

    # --- memory protection ------------------------------------------------------------------------------------------

    def is_ram(self, gpa: int) -> bool:
        return any(region.gpa <= gpa < region.end for region in self._regions)

    def ram_ranges(self) -> Iterator[tuple[int, int]]:
        """(gpa, size) of all RAM."""
        for region in self._regions:
            yield region.gpa, region.size

    def add_memory(self, region: MemoryRegion) -> None:
        """Hot-add RAM. From the start lower VTLs have what the default masks of the enabled VTLs leave them.

        Raises:
            KvmError: EEXIST, the slot is in use or memory is there; EINVAL, a malformed region. Nothing changed.
        """
        with self.lock:
            slots = self.vtl0.vm.memory.slots
            if slots.by_id(region.slot) is not None:
                raise KvmError(errno.EEXIST, f"slot {region.slot} is in use")
            slots.changed([region])
            # Before the memory is there: no VTL has it unprotected for a moment.
            for setter, vtl in self.vtls.items():
                access = vtl.default_access()
                if access is not Access.ALL:
                    for lower in range(setter):
                        self.protect(setter, lower, region.gpa, region.size, access)
            self._regions = (*self._regions, region)
            for vtl in self.vtls.values():
                vtl.vm.set_user_memory_region(region)

    def protect(self, setter: int, target: int, gpa: int, size: int, access: Access) -> None:
        """VTL `setter` permits VTL `target` `access` to whole pages. The caller holds the lock."""
        protections = self.vtls[setter].protections
        protections[target] = protections.get(target, MemoryAttributes()).changed(gpa, size, access)
        if target in self.vtls:
            self._apply(target, gpa, size)

    def _apply(self, target: int, gpa: int, size: int) -> None:
        """What all higher VTLs together permit."""
        memory = self.vtls[target].vm
        cuts = {gpa, gpa + size}
        masks = [vtl.protections[target] for vtl in self.vtls.values() if target in vtl.protections]
        for mask in masks:
            for start, stop, _ in mask.runs(gpa, gpa + size):
                cuts.update((start, stop))
        points = sorted(cuts)
        for start, stop in pairwise(points):
            access = Access.ALL
            for mask in masks:
                access &= mask.at(start)
            memory.set_memory_attributes(start, stop - start, access)

    def wait_for_memory(self, targets: Iterable[int]) -> None:
        """Block until no processor runs one of these VTLs under protections from before the last change.

        The caller holds no lock. A run that ends is not waited for: its processors stop where they are.
        """
        for target in targets:
            vtl = self.vtls.get(target)
            if vtl is not None:
                vtl.vm.wait_for_memory(self.supervisor.ending)

    def wait_for_intercepts(self, targets: Iterable[int]) -> None:
        """Block until no processor runs one of these VTLs without the intercepts that were last set; as above."""
        for target in targets:
            vtl = self.vtls.get(target)
            if vtl is not None:
                vtl.vm.wait_for_intercepts(self.supervisor.ending)

    def deniers(self, target: int, gpa: int, access: Access) -> list[int]:
        """The VTLs above `target` whose protections forbid the access; the lowest, which is told first, comes first."""
        masks = ((level, self.vtls[level].protections.get(target)) for level in sorted(self.vtls) if level > target)
        return [level for level, mask in masks if mask is not None and access & ~mask.at(gpa)]

    def denier(self, target: int, gpa: int, access: Access) -> int | None:
        """The first of `deniers`."""
        return next(iter(self.deniers(target, gpa, access)), None)

    # --- reset ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """A partition reset: VTL 0 only, nothing protected, no ports. Every task is parked, or is the one that calls.

        Memory is zeroed first if a higher VTL has not said otherwise: what it had protected is nobody's to read.
        """
        zero = any(HV_VSM_PARTITION_CONFIG_ZERO_MEMORY_ON_RESET.get(vtl.config) for vtl in self.vtls.values())
        self.ports.reset()
        self.tlb_locks.reset()
        for vp in self.vps:
            vp.reset(self._retired)
        self.vtls = {0: self.vtl0}
        vm = self.vtl0.vm
        for gpa, size in self.ram_ranges():
            vm.set_memory_attributes(gpa, size, Access.ALL)
        if zero:
            self._zero_memory()
        vm.reset()
        for vp in self.vps:
            vp.vcpus[0].reset_to_power_on()

    def _zero_memory(self) -> None:
        memory = self.vtl0.vm.memory
        for region in self._regions:
            assert region.block is not None
            region.block.zero(region.offset, region.size)
            memory.on_write(region.gpa, region.size)
