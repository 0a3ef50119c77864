"""A virtual processor: one vCPU per VTL, at most one of them active, and the switch between them.

A processor has one task, which runs the vCPU of the active VTL and makes every switch, between two instructions. It is
asked to look at a higher VTL that has a deliverable interrupt, and switches to it (docs/design/vtl-switch.md); how one
knows that there is one is the business of `waits` (docs/design/wait.md).

Shared between tasks: `active`, `_look` (VTLs that somebody kicked while they were inactive; START, a start state waits
in `starting`; VINA, some VTL has enabled it), `_switches` (a sequence count: odd while the registers that VTLs share
are handed over), `_stops` (how many want the task out of the guest), `tlb_waits` and `tlb_holders` (`tlb_locks`);
`vcpus` is replaced whole. `queue` is where the task waits outside the hypervisor. `_passed` is the task's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.host.api import Cell
from vtlkit.hvdef.identifiers import HV_MAX_VTLS
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.kvm.uapi import (
    Hyperv,
    Intercepted,
    Intr,
    IrqWindowOpen,
    KvmRun,
    MemoryFault,
    Vcpu,
    VcpuStatistics,
)
from vtlkit.vmm.vsm import deliverability, hypercalls, intercepts, startup, state_pages
from vtlkit.vmm.vsm.intercepts import wishes
from vtlkit.vmm.vsm.startup import START
from vtlkit.vmm.vsm.vina import VINA, Vina
from vtlkit.vmm.vsm.vtl_waiters import make_waits

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.partition import Partition

SharedStateToken: TypeAlias = int
"""Switches so far, twice; odd in the middle of one."""

_VTLS: Final = (1 << HV_MAX_VTLS) - 1
_NEWS: Final = _VTLS | 1 << START
"""Bits of `Vp._look` that the task clears when it has looked; VINA stays."""


class Vp:
    """See the module."""

    def __init__(self, partition: Partition, index: int) -> None:
        host = partition.host
        self.partition = partition
        self.host = host
        self.index = index
        self.vcpus: dict[int, Vcpu] = {}
        self.active = host.cell(0, f"vp{index}-active-vtl")
        self.queue = host.wait_queue(f"vp{index}-vtls")
        self._look = host.bitmap(f"vp{index}-look-at-vtls")
        self._stops = host.cell(0, f"vp{index}-stops")
        self._switches = host.cell(0, f"vp{index}-switches")
        self.notified: dict[int, int] = {}
        """Which VTL is told when a lower one can take an interrupt (`deliverability`)."""
        self.tlb_waits = host.bitmap(f"vp{index}-tlb-waits")
        """VTLs that execute nothing until TLB locks of other processors are released (`tlb_locks`)."""
        self.tlb_holders = host.bitmap(f"vp{index}-tlb-holders")
        """VTLs that hold a TLB lock on a lower one of this processor."""
        self.starting: Cell[startup.Start | None] = host.cell(None, f"vp{index}-starting")
        self.vina = Vina(self)
        self._passed = 0
        """VTLs, a bit each, that the processor passed over on its way to a higher one."""
        self._entered = 0
        """VTLs above 0, a bit each, that have been active."""
        self._next_higher: dict[int, int] = {}
        self._next_lower: dict[int, int] = {}
        self._retired: list[Vcpu] = []
        self._started = False
        self.waits = make_waits(self, partition.vtl_wait)
        self.intercepts = wishes.VpIntercepts()
        """What higher VTLs intercept here; guarded by the partition's lock."""
        self.state_pages: state_pages.StatePages = {}
        """Pages that show VTLs of this processor to higher ones; replaced whole, under the partition's lock."""

    @property
    def switches(self) -> int:
        """VTL switches so far."""
        return self._switches.load() // 2

    # --- VTLs -------------------------------------------------------------------------------------------------------

    def add_vcpu(self, vcpu: Vcpu, level: int) -> None:
        """Enable a VTL. From any task; the caller holds the partition's lock."""
        for lower, other in self.vcpus.items():
            if lower < level:
                other.startup_blocked.store(True)
        self.waits.added(level, vcpu)
        # The task may be going through the vCPUs: it goes on with those that it began with.
        self.vcpus = {**self.vcpus, level: vcpu}
        self._relink()
        wishes.apply_to(self)
        if len(self.vcpus) > 1:
            for number, each in self.vcpus.items():
                each.listen(partial(self._kicked, number))
            self.host.smp_mb()
            if self._started:
                # What was sent before anybody listened is looked at now.
                self.ask(level)
        # Whoever stops the processor, parks it or ends the run signals the vCPUs that it finds.
        if self._started and self.must_leave():
            vcpu.signal()

    def start(self) -> None:
        """Start the task."""
        self._started = True
        self.partition.supervisor.task_started()
        self.host.spawn(self._task, f"vp{self.index}")

    def enabled_set(self) -> int:
        """Bit n: VTL n is enabled on this processor."""
        return sum(1 << level for level in self.vcpus)

    def next_higher(self, level: int) -> int | None:
        """Where a VTL call goes."""
        return self._next_higher.get(level)

    def next_lower(self, level: int) -> int | None:
        """Where a VTL return goes."""
        return self._next_lower.get(level)

    def _relink(self) -> None:
        levels = sorted(self.vcpus)
        self._next_higher = dict(pairwise(levels))
        self._next_lower = dict(zip(levels[1:], levels, strict=False))

    def reset(self, retired: list[VcpuStatistics]) -> None:
        """Back to VTL 0 alone. The task is parked; it destroys the vCPUs of higher VTLs when it goes on."""
        vcpu = self.vcpus[0]
        for level, other in self.vcpus.items():
            if level:
                retired.append(other.statistics)
                self._retired.append(other)
        self.vcpus = {0: vcpu}
        self.waits.reset()
        vcpu.listen(None)
        vcpu.vtl_inactive = False
        vcpu.startup_blocked.store(False)
        self.notified = {}
        self.intercepts = wishes.VpIntercepts()
        vcpu.set_user_intercepts(None)
        self._relink()
        self.active.store(0)
        self._passed = self._entered = 0
        self.starting.store(None)
        self.vina.reset()
        self.state_pages = {}
        for bit in range(VINA + 1):
            self._look.clear(bit)

    # --- the task ---------------------------------------------------------------------------------------------------

    def _task(self) -> None:
        supervisor = self.partition.supervisor
        try:
            while not supervisor.ending():
                if supervisor.must_park():
                    self._park()
                elif self._stops.load():
                    self._finish_instruction()
                    self.host.wait_event(
                        self.queue, lambda: not self._stops.load() or self._interrupted(), interruptible=False
                    )
                else:
                    self.waits.settle()
                    self._run()
            self.waits.end()
        finally:
            self._retired.extend(self.vcpus.values())
            self._close_retired()
            supervisor.task_finished()

    def _interrupted(self) -> bool:
        supervisor = self.partition.supervisor
        return supervisor.ending() or supervisor.must_park()

    def must_leave(self) -> bool:
        """Whether the task is not to run a VTL now: who wants that stores it, then signals every vCPU. Any task."""
        return bool(self._stops.load()) or self._interrupted()

    def _park(self) -> None:
        self._finish_instruction()
        self.waits.suspend()
        self.partition.supervisor.park()
        self.waits.resume()
        self._close_retired()

    def _finish_instruction(self) -> None:
        """Bring the active VTL's vCPU between two instructions, and tell whoever waits for that."""
        while (exit_ := (vcpu := self.vcpus[level := self.active.load()]).complete_exit()) is not None:
            self._handle(level, vcpu, exit_)
        self.queue.wake()

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for vcpu in retired:
            self.partition.supervisor.vcpu_finished(vcpu)
            vcpu.close()

    def _run(self) -> None:
        """Run the active VTL, whichever that is, until a signal ends a run."""
        active = self.active
        if not self._look.load() & _NEWS:
            # Out of the guest by a kick of all: `run` would only say INTR again. News end the wait by a signal.
            self.vcpus[active.load()].wait_until_resumed()
        while True:
            level = active.load()
            # Whoever sets a bit here, stops, parks or ends signals a vCPU after that.
            if self._look.load() and self._switch_by_event(level):
                continue
            if self.tlb_waits.test(level):
                self._wait_for_tlb_locks(level)
                return
            vcpu = self.vcpus[level]
            exit_ = vcpu.run()
            if isinstance(exit_, Intr):
                return
            self._handle(level, vcpu, exit_)

    def _wait_for_tlb_locks(self, level: int) -> None:
        """Sleep until the locks have been released, or there is something else to do."""
        self.host.wait_event(
            self.queue,
            lambda: not self.tlb_waits.test(level) or bool(self._look.load() & _NEWS) or self._interrupted(),
            interruptible=False,
        )

    def ask(self, *bits: int) -> None:
        """Have the task look at these before it runs a VTL again. From any task."""
        for bit in bits:
            self._look.set(bit)
        self._news()

    def _kicked(self, level: int) -> None:
        """Somebody has kicked the vCPU of a VTL: if it is inactive, the task is to look at it. From any task."""
        active = self.active.load()
        # If the task leaves this VTL now, it looks at it after that.
        if active != level and self.waits.hears(level, active):
            self.ask(level)

    def look(self, level: int) -> None:
        """The task itself will look at this VTL before it runs one again."""
        self._look.set(level)

    def _news(self) -> None:
        """A bit of `_look` has been set: the task is to hear of it, wherever it is. From any task."""
        self.host.smp_mb()
        vcpu = self.vcpus.get(self.active.load())
        if vcpu is not None:
            vcpu.signal()
        # A processor that waits for TLB locks is outside `run`; pairs with _wait_for_tlb_locks.
        if self.tlb_waits.load():
            self.queue.wake()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The processor's task stays out of the guest meanwhile; if it is there, it is on its way out. Any task."""
        self._stops.fetch_add(1)
        # The count before the signal: a task that has taken the signal sees the count.
        for vcpu in self.vcpus.values():
            vcpu.signal()
        try:
            yield
        finally:
            self._stops.fetch_add(-1)
            self.queue.wake()

    def wait_for_boundary(self, vcpu: Vcpu) -> bool:
        """Wait, the processor being stopped, until its vCPU has finished its instruction; False if the run ends first.

        The caller holds no lock that a device may need.
        """
        supervisor = self.partition.supervisor
        self.host.wait_event(self.queue, lambda: vcpu.engine.at_boundary or supervisor.ending(), interruptible=False)
        return vcpu.engine.at_boundary

    def shared_state(self) -> tuple[Vcpu, SharedStateToken]:
        """The vCPU that has the registers which the VTLs share, and a token for `shared_state_stayed`.

        May block while they are being handed over.
        """
        while True:
            token = self._switches.load_acquire()
            vcpu = self.vcpus.get(self.active.load_acquire())
            if vcpu is not None and not token & 1 and self.shared_state_stayed(token):
                return vcpu, token
            self.host.relax()

    def shared_state_stayed(self, token: SharedStateToken) -> bool:
        """Whether they have been there since; if not, what was read or written there meanwhile does not count."""
        self.host.smp_mb()
        return self._switches.load() == token

    # --- switching --------------------------------------------------------------------------------------------------

    def _switch_by_event(self, level: int) -> bool:
        """Look at the VTLs that were kicked; switch to the highest one above `level` that has an event."""
        everything = self._look.load()
        if everything >> START & 1:
            self._look.test_and_clear(START)
            startup.take(self, level)
            return True
        look = everything & _VTLS
        target = 0
        for other in reversed(range(look.bit_length())):
            if look >> other & 1:
                # Taken before the look: what comes after it sets the bit anew.
                self._look.test_and_clear(other)
                vcpu = self.vcpus.get(other)
                if not target and other > level and vcpu is not None and self.waits.pending(vcpu):
                    target = other
        if not target:
            if everything >> VINA & 1:
                self.vina.decide(level, look)
            return False
        if not self.settle(level):
            # What was left of the instruction took the processor to a higher VTL already.
            self._look.set(target)
            return True
        self.switch(level, target, HvVtlEntryReason.HvVtlEntryInterrupt)
        return True

    def settle(self, level: int) -> bool:
        """Finish the instruction that VTL `level`, the active one, has an exit in; whether it is still the active one.

        The processor's task.
        """
        vcpu = self.vcpus[level]
        while (exit_ := vcpu.complete_exit()) is not None:
            self._handle(level, vcpu, exit_)
            if self.active.load() != level:
                return False
        return True

    def switch(self, source: int, target: int, reason: HvVtlEntryReason | None = None) -> None:
        """Make `target` the active VTL; called by the processor's task between two instructions.

        `reason` is the entry reason that a higher VTL finds in its VP assist page.
        """
        if target < source:
            self.partition.tlb_locks.release_all(self, source)
            if self.state_pages:
                state_pages.take_back(self, source)
        self.waits.entering(target)
        host, switches = self.host, self._switches
        giver, newcomer = self.vcpus[source], self.vcpus[target]
        if reason is None:
            # Above VTL 0, somebody may find itself active whom nobody has called.
            if target and (self._passed >> target & 1 or not self._entered >> target & 1):
                self._passed &= ~(1 << target)
                reason = HvVtlEntryReason.HvVtlEntryInterrupt
        elif target - source > 1:
            self._passed |= self.enabled_set() & (1 << target) - (2 << source)
        self._entered |= 1 << target
        if reason is not None:
            newcomer.hv.assist.set_entry_reason(reason)
        if target > source:
            self.vina.entered(target)
        if giver.trace is not None:
            giver.trace.vtl_switch(source, target, "none" if reason is None else reason.name)
        count = switches.load()
        switches.store(count + 1)
        # Announced before the copy: who changed the giver's registers looks at the count after that.
        host.smp_mb()
        with newcomer.mutex:
            newcomer.copy_shared_state(giver)
        self.active.store_release(target)
        switches.store_release(count + 2)
        # Orders the store of the active VTL before the loads of the VTL's events; pairs with the kick in `_kicked`.
        host.smp_mb()
        self.waits.changed(source, giver, newcomer)

    # --- exits ------------------------------------------------------------------------------------------------------

    def _handle(self, level: int, vcpu: Vcpu, exit_: KvmRun) -> None:
        if isinstance(exit_, Hyperv):
            hypercalls.dispatch(self, level, vcpu, exit_)
        elif isinstance(exit_, MemoryFault):
            intercepts.memory_fault(self, level, vcpu, exit_)
        elif isinstance(exit_, IrqWindowOpen):
            deliverability.opened(self, level, vcpu, exit_)
        elif isinstance(exit_, Intercepted):
            intercepts.intercepted(self, level, vcpu, exit_)
        elif not isinstance(exit_, Intr):
            self.partition.supervisor.handle(self, vcpu, exit_)
