"""A virtual processor: one vCPU per VTL, at most one of them active, and the switch between them.

Every vCPU has a task. The active one runs the guest. That of an inactive higher VTL waits in the hypervisor for a wake
event (MP state HV_INACTIVE_VTL) and asks for a switch when one comes; that of an inactive lower VTL waits here. A
switch is made by the task that gives up: between two instructions, it names the newcomer; the newcomer's task then
takes the shared registers and runs. So at any time one task touches the processor's state (docs/design/vtl-switch.md).

Shared between a processor's tasks: `active`, `_wanted` (VTLs that ask for a switch), `_sleeping` (VTLs whose task may
be inside the hypervisor), `_donor` (whose registers the active VTL has yet to take), `_switches` (how many there were),
`_stops` (how many want the tasks out of the guest); `vcpus` is replaced whole. `queue` is where tasks wait outside the
hypervisor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeAlias

from vtlkit.hvdef.identifiers import HV_MAX_VTLS
from vtlkit.hvdef.vsm import HvVtlEntryReason
from vtlkit.kvm.uapi import (
    Hyperv,
    Intr,
    KvmRun,
    MemoryFault,
    MpState,
    SystemEvent,
    SystemEventExit,
    Vcpu,
    VcpuStatistics,
)
from vtlkit.vmm.vsm import hypercalls, intercepts

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.partition import Partition

_NO_DONOR: Final = -1
_COPYING: Final = -2

SharedStateToken: TypeAlias = tuple[int, int, int]
"""(active VTL, donor, switches so far): no two moments of a switch have the same."""


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
        self._wanted = host.bitmap(f"vp{index}-wanted-vtls")
        self._sleeping = host.bitmap(f"vp{index}-sleeping-vtls")
        self._donor = host.cell(_NO_DONOR, f"vp{index}-donor-vtl")
        self._stops = host.cell(0, f"vp{index}-stops")
        self._mp_states: dict[int, MpState] = {}
        self._started = False
        self._next_higher: dict[int, int] = {}
        self._next_lower: dict[int, int] = {}
        self._switches = host.cell(0, f"vp{index}-switches")

    @property
    def switches(self) -> int:
        """VTL switches so far."""
        return self._switches.load()

    # --- VTLs -------------------------------------------------------------------------------------------------------

    def add_vcpu(self, vcpu: Vcpu, level: int) -> None:
        """Enable a VTL; its task starts with the processor's."""
        self._mp_states[level] = vcpu.get_mp_state()
        for lower, other in self.vcpus.items():
            if lower < level:
                other.startup_blocked.store(True)
        # Tasks may be going through the vCPUs: they go on with those they began with.
        self.vcpus = {**self.vcpus, level: vcpu}
        self._relink()
        if self._started:
            self._spawn(level, vcpu)

    def start(self) -> None:
        """Start the tasks."""
        self._started = True
        for level, vcpu in self.vcpus.items():
            self._spawn(level, vcpu)

    def _spawn(self, level: int, vcpu: Vcpu) -> None:
        self.partition.supervisor.task_started()
        self.host.spawn(lambda: self._task(level, vcpu), f"vp{self.index}-vtl{level}")

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
        """Back to VTL 0 alone. Tasks of higher VTLs are parked and return when they find their vCPU gone."""
        retired.extend(vcpu.statistics for level, vcpu in self.vcpus.items() if level)
        self.vcpus = {0: self.vcpus[0]}
        self.vcpus[0].startup_blocked.store(False)
        self._mp_states = {0: self._mp_states[0]}
        self._relink()
        self.active.store(0)
        self._donor.store(_NO_DONOR)
        for level in range(HV_MAX_VTLS):
            self._wanted.clear(level)
            self._sleeping.clear(level)

    # --- a vCPU's task ----------------------------------------------------------------------------------------------

    def _task(self, level: int, vcpu: Vcpu) -> None:
        supervisor = self.partition.supervisor
        try:
            while not supervisor.ending():
                if supervisor.must_park():
                    self._park(vcpu)
                elif self.vcpus.get(level) is not vcpu:
                    break
                elif self._stops.load():
                    self.host.wait_event(
                        self.queue, lambda: not self._stops.load() or self._interrupted(), interruptible=False
                    )
                elif self.active.load() == level:
                    self._run_active(level, vcpu)
                elif self.active.load() < level:
                    self._wait_above(level, vcpu)
                else:
                    self.host.wait_event(
                        self.queue, lambda: self.active.load() <= level or self._interrupted(), interruptible=False
                    )
        finally:
            supervisor.task_finished(vcpu)
            vcpu.close()

    def _interrupted(self) -> bool:
        supervisor = self.partition.supervisor
        return supervisor.ending() or supervisor.must_park()

    def _park(self, vcpu: Vcpu) -> None:
        while (exit_ := vcpu.complete_exit()) is not None:
            self._handle(self.active.load(), vcpu, exit_)
        self.partition.supervisor.park()

    def _run_active(self, level: int, vcpu: Vcpu) -> None:
        donor = self._donor.load()
        if donor >= 0:
            # Announced before the copy: who changed the donor's registers looks at the donor after that.
            self._donor.store(_COPYING)
            self.host.smp_mb()
            vcpu.copy_shared_state(self.vcpus[donor])
            self._donor.store_release(_NO_DONOR)
            self._sleeping.clear(level)
            # The event that this VTL may have asked for the processor for will be delivered now.
            self._wanted.clear(level)
            vcpu.set_mp_state(self._mp_states[level])
        wanted = self._wanted.load() >> (level + 1)
        if wanted:
            self._switch_by_event(level, vcpu, level + wanted.bit_length())
            return
        self._handle(level, vcpu, vcpu.run())

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No task of the processor enters the guest meanwhile; one that is there is on its way out. From any task."""
        self._stops.fetch_add(1)
        # The count before the signal: a task that has taken the signal sees the count.
        for vcpu in self.vcpus.values():
            vcpu.signal()
        try:
            yield
        finally:
            self._stops.fetch_add(-1)
            self.queue.wake()

    def shared_state(self) -> tuple[Vcpu, SharedStateToken]:
        """The vCPU that has the registers which the VTLs share, and a token for `shared_state_stayed`.

        May block while they are being handed over.
        """
        while True:
            switches = self._switches.load_acquire()
            active = self.active.load_acquire()
            donor = self._donor.load_acquire()
            token = (active, donor, switches)
            if donor != _COPYING and self.shared_state_stayed(token):
                return self.vcpus[active if donor == _NO_DONOR else donor], token
            self.host.relax()

    def shared_state_stayed(self, token: SharedStateToken) -> bool:
        """Whether they have been there since; if not, what was read or written there meanwhile does not count."""
        self.host.smp_mb()
        # Active VTL and donor take old values again, the count does not: it is looked at last.
        now = self.active.load_acquire(), self._donor.load_acquire(), self._switches.load()
        return now == token

    def _wait_above(self, level: int, vcpu: Vcpu) -> None:
        """Wait for a wake event of an inactive VTL above the active one, or for a switch to it."""
        if self._wanted.test(level):
            self.host.wait_event(
                self.queue,
                lambda: self.active.load() >= level or not self._wanted.test(level) or self._interrupted(),
                interruptible=False,
            )
            return
        if vcpu.get_mp_state() is not MpState.HV_INACTIVE_VTL:
            vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
        # The mark before the look: whoever makes this VTL active after the look sees the mark and ends the wait.
        self._sleeping.set(level)
        self.host.smp_mb()
        if self.active.load() >= level or self._interrupted():
            return
        exit_ = vcpu.run()
        if isinstance(exit_, SystemEventExit) and exit_.type is SystemEvent.WAKEUP:
            self.request_switch(level)

    # --- switching --------------------------------------------------------------------------------------------------

    def request_switch(self, level: int) -> None:
        """Ask the active VTL's task to give way to a higher one. From any task."""
        self._wanted.set(level)
        self.host.smp_mb()
        active = self.active.load()
        vcpu = self.vcpus.get(active)
        if active < level and vcpu is not None:
            vcpu.signal()

    def _switch_by_event(self, level: int, vcpu: Vcpu, target: int) -> None:
        while (exit_ := vcpu.complete_exit()) is not None:
            self._handle(level, vcpu, exit_)
            if self.active.load() != level:
                # What was left of the instruction took the processor to a higher VTL already.
                return
        self.switch(level, target, HvVtlEntryReason.HvVtlEntryInterrupt)

    def switch(self, source: int, target: int, reason: HvVtlEntryReason | None = None) -> None:
        """Make `target` the active VTL; called by the active one's task between two instructions.

        `reason` is the entry reason that a higher VTL finds in its VP assist page.
        """
        # The count before the donor, the donor before the active VTL; pairs with shared_state.
        self._switches.store(self._switches.load() + 1)
        self.host.smp_wmb()
        newcomer = self.vcpus[target]
        self._mp_states[source] = self.vcpus[source].get_mp_state()
        if reason is not None:
            newcomer.hv.assist.set_entry_reason(reason)
        self._donor.store(source)
        self.active.store_release(target)
        # Orders the store of the active VTL before the load of the mark; pairs with _wait_above.
        self.host.smp_mb()
        if self._sleeping.test(target):
            newcomer.signal()
        self.queue.wake()

    # --- exits ------------------------------------------------------------------------------------------------------

    def _handle(self, level: int, vcpu: Vcpu, exit_: KvmRun) -> None:
        if isinstance(exit_, Intr):
            return
        if isinstance(exit_, Hyperv):
            hypercalls.dispatch(self, level, vcpu, exit_)
        elif isinstance(exit_, MemoryFault):
            intercepts.memory_fault(self, level, vcpu, exit_)
        else:
            self.partition.supervisor.handle(self, vcpu, exit_)
