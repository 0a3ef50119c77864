"""The TLB locks of a partition: which VTL of a processor holds one on which lower VTL, and who waits for that to end.

TLFS, "Virtual Secure Mode", TlbLocked; HvCallFlushVirtualAddressSpace. A lock holds up the flushes of VTLs below its
holder, and those that other processors make in the holder's own VTL. What the hypervisor sees of it is an inhibited
vCPU (`Vcpu.hyperv_set_tlb_flush_inhibit`); flushes that name VTLs, and HvRegisterVsmVpWaitForTlbLock, wait here.

`_lock` (TLB_LOCKS) protects everything here, each `Vp.tlb_holders` and `Vp.tlb_waits`, and makes a decision about locks
and the flush requests that follow from it one step. Nothing blocks inside it but, in the posted design of the inhibit,
the grace period that ends a change of it: no vCPU in its read section ever needs this lock.
docs/design/tlb-flush-inhibit.md has the races.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from vtlkit.host.api import LockRank

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.partition import Partition
    from vtlkit.vmm.vsm.vp import Vp

_Tlb: TypeAlias = tuple[int, int]
"""(VP index, VTL whose TLB it is)"""


class TlbLocks:
    """See the module."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._lock = partition.host.lock("tlb-locks", LockRank.TLB_LOCKS)
        self._holders: dict[_Tlb, int] = {}
        """Bit per VTL that holds a lock on the TLB; none of 0."""
        self._awaited: dict[_Tlb, dict[_Tlb, int]] = {}
        """By (VP index, VTL) that waits: the holders that it waits for."""

    # --- locks ------------------------------------------------------------------------------------------------------

    def acquire(self, vp: Vp, holder: int, target: int) -> None:
        """VTL `holder` of the processor locks the TLB of its lower VTL `target`; once is enough. May block."""
        assert holder > target
        key = (vp.index, target)
        with self._lock:
            before = self._holders.get(key, 0)
            self._holders[key] = before | 1 << holder
            vp.tlb_holders.set(holder)
            if not before:
                vp.vcpus[target].hyperv_set_tlb_flush_inhibit(True)

    def held(self, vp: Vp, holder: int, target: int) -> bool:
        with self._lock:
            return bool(self._holders.get((vp.index, target), 0) >> holder & 1)

    def release(self, vp: Vp, holder: int, target: int) -> None:
        """End one lock, if it is held."""
        with self._lock:
            self._release(vp, holder, target)
            if not any(holders >> holder & 1 for (index, _), holders in self._holders.items() if index == vp.index):
                vp.tlb_holders.clear(holder)

    def release_all(self, vp: Vp, holder: int) -> None:
        """VTL `holder` returns to a lower one: all that it holds on the processor ends."""
        if not vp.tlb_holders.test(holder):
            return
        with self._lock:
            for target in range(holder):
                self._release(vp, holder, target)
            vp.tlb_holders.clear(holder)

    def _release(self, vp: Vp, holder: int, target: int) -> None:
        key = (vp.index, target)
        holders = self._holders.get(key, 0)
        if not holders >> holder & 1:
            return
        left = holders & ~(1 << holder)
        if left:
            self._holders[key] = left
        else:
            del self._holders[key]
            vcpu = vp.vcpus.get(target)
            if vcpu is not None:
                vcpu.hyperv_set_tlb_flush_inhibit(False)
        for waiting, awaited in list(self._awaited.items()):
            if awaited.get(key, 0) >> holder & 1:
                awaited[key] &= ~(1 << holder)
                if not any(awaited.values()):
                    self._end_wait(waiting)

    # --- waits ------------------------------------------------------------------------------------------------------

    def flush(self, vp: Vp, level: int, vtls: Iterable[int], targets: int) -> bool:
        """VTL `level` of the processor flushes TLBs: of these VTLs, none above it, of a set of VPs (`Vm.send_ipi`).

        False: a lock holds it up. Its VTL executes nothing until the lock is released, and has to ask again.
        """
        partition = self._partition
        vtls = tuple(vtls)
        with self._lock:
            awaited: dict[_Tlb, int] = {}
            for (index, vtl), holders in self._holders.items():
                if vtl not in vtls or not targets >> index & 1:
                    continue
                # Not those of lower VTLs, which may not hold up a higher one; nor its own, which it could never end.
                holders &= -1 << (level + 1 if index == vp.index else level)
                if holders:
                    awaited[index, vtl] = holders
            if awaited:
                self._wait(vp, level, awaited)
                return False
            for vtl in vtls:
                partition.vtls[vtl].vm.request_tlb_flush(targets)
        for vtl in vtls:
            partition.vtls[vtl].vm.wait_for_tlb_flush(targets, partition.supervisor.ending)
        return True

    def wait_for_locks(self, vp: Vp, level: int) -> None:
        """VTL `level` of the processor executes nothing until those locks on it that others hold now are released."""
        with self._lock:
            awaited = {
                (index, vtl): holders
                for (index, vtl), holders in self._holders.items()
                if vtl == level and index != vp.index
            }
            if awaited:
                self._wait(vp, level, awaited)

    def waits(self, vp: Vp, level: int) -> bool:
        with self._lock:
            return (vp.index, level) in self._awaited

    def _wait(self, vp: Vp, level: int, awaited: dict[_Tlb, int]) -> None:
        earlier = self._awaited.setdefault((vp.index, level), {})
        for key, holders in awaited.items():
            earlier[key] = earlier.get(key, 0) | holders
        vp.tlb_waits.set(level)

    def _end_wait(self, waiting: _Tlb) -> None:
        del self._awaited[waiting]
        index, level = waiting
        vp = self._partition.vps[index]
        vp.tlb_waits.clear(level)
        vp.queue.wake()

    # --- reset ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """A partition reset: nothing is locked, nobody waits. Every task is parked, or is the one that calls this."""
        with self._lock:
            for index, target in list(self._holders):
                self._partition.vps[index].vcpus[target].hyperv_set_tlb_flush_inhibit(False)
            self._holders.clear()
            for waiting in list(self._awaited):
                self._end_wait(waiting)
            for vp in self._partition.vps:
                for level in range(vp.tlb_holders.load().bit_length()):
                    vp.tlb_holders.clear(level)
