"""The designs in which a task sits in the hypervisor for each inactive VTL: MP state, wait call, blocking completion.

Shared words of a `Waiter`: `_reasons`, how many want its task out of the hypervisor; `_sitting`, the task is there or
on its way; `woken`, it has come back with a wake event, and the processor's task is to act on it. The task says that it
sits down and then looks at `_reasons`; who wants it out counts, then looks at `_sitting`, then signals: one sees the
other, and a signal that comes before the sleep ends it. While the task sits, the VTL's vCPU is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vtlkit.host.api import Task
from vtlkit.kvm.uapi import EventsValid, Hyperv, MpState, SystemEventExit, Vcpu, WaitResult, WaitType
from vtlkit.vmm.vsm.vtl_wait import Poll, VtlWait, Waits

if TYPE_CHECKING:
    from vtlkit.vmm.vsm.vp import Vp


class Waiter:
    """The task that waits for one VTL of a processor. It is started when it first has to."""

    def __init__(self, vp: Vp, level: int, vcpu: Vcpu) -> None:
        host, name = vp.host, f"vp{vp.index}-vtl{level}-wait"
        self._vp = vp
        self._host = host
        self._name = name
        self._queue = host.wait_queue(name)
        self._reasons = host.cell(1, f"{name}-reasons")
        self._sitting = host.cell(False, f"{name}-sitting")
        self._ended = host.cell(False, f"{name}-ended")
        self.woken = host.cell(False, f"{name}-woken")
        self._task: Task | None = None
        self._out = True
        self.level = level
        self.vcpu = vcpu
        self.calls = 0

    # --- the design -------------------------------------------------------------------------------------------------

    def sit(self) -> bool:
        """Wait in the hypervisor; whether a wake event ended it, and not a signal. The waiter's task. Blocks."""
        raise NotImplementedError

    def answer(self, exit_: Hyperv) -> None:
        """See `Waits.answer`."""

    def leave(self) -> None:
        """The VTL becomes active, or somebody else is to have its vCPU: undo what makes the vCPU wait. The task is out,
        and the caller holds the mutex."""

    # --- the task ---------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        host = self._host
        while True:
            host.wait_event(self._queue, self._has_to_move, interruptible=False)
            if self._ended.load():
                return
            self._sitting.store(True)
            # Pairs with `keep_out`.
            host.smp_mb()
            woken = not self._reasons.load() and self._sit()
            if woken:
                # Before it is out: who has got it out forgets this after that.
                self.woken.store(True)
            self._sitting.store_release(False)
            self._queue.wake()
            if woken:
                self._vp.ask(self.level)

    def _sit(self) -> bool:
        # Out of the hypervisor by a kick of all: it would only say so again.
        self.vcpu.wait_until_resumed()
        return self.sit()

    def _has_to_move(self) -> bool:
        return self._ended.load() or not (self._reasons.load() or self.woken.load())

    # --- others -----------------------------------------------------------------------------------------------------

    def keep_out(self) -> None:
        """Get the task out of the hypervisor, and keep it out until `let_in`. What it has come back with is forgotten:
        it will look again. Any task. Blocks."""
        self._reasons.fetch_add(1)
        if self._sitting.load():
            self.vcpu.signal()
            self._host.wait_event(self._queue, lambda: not self._sitting.load_acquire(), interruptible=False)
        self.woken.store(False)

    def let_in(self) -> None:
        """Undo one `keep_out`. Any task."""
        self._reasons.fetch_add(-1)
        self._queue.wake()

    def wanted(self, wanted: bool) -> None:
        """Whether the VTL is inactive and above the active one. The processor's task. Blocks."""
        if wanted is not self._out:
            return
        self._out = not wanted
        if not wanted:
            self.keep_out()
            # Another processor may be writing the vCPU.
            with self.vcpu.mutex:
                self.leave()
            return
        if self._task is None:
            self._task = self._host.spawn(self._wait, self._name, daemon=True)
        self.let_in()

    def end(self) -> None:
        """End the task. The processor's task. Blocks."""
        self._ended.store(True)
        self.keep_out()
        self._queue.wake()
        if self._task is not None:
            self._task.join()


class MpStateWaiter(Waiter):
    """Moves the vCPU to HV_INACTIVE_VTL and runs it."""

    def __init__(self, vp: Vp, level: int, vcpu: Vcpu) -> None:
        super().__init__(vp, level, vcpu)
        self._inactive = False

    def sit(self) -> bool:
        if not self._inactive:
            # A VTL above the active one has returned, or was never entered: it was RUNNABLE.
            self._inactive = True
            self.calls += 1
            self.vcpu.set_mp_state(MpState.HV_INACTIVE_VTL)
        self.calls += 1
        return isinstance(self.vcpu.run(), SystemEventExit)

    def leave(self) -> None:
        if self._inactive:
            self._inactive = False
            self.calls += 1
            self.vcpu.set_mp_state(MpState.RUNNABLE)


class CallWaiter(Waiter):
    """The wait call: nothing to set, nothing to undo."""

    def sit(self) -> bool:
        self.calls += 1
        return self.vcpu.wait(WaitType.INACTIVE_VTL) is WaitResult.WAKEUP


class CompletionWaiter(Waiter):
    """The answer to the VTL return says that its completion is to block. Where there is none, or it has been used up
    without the VTL being entered, the word that save and restore have for it does the same."""

    def __init__(self, vp: Vp, level: int, vcpu: Vcpu) -> None:
        super().__init__(vp, level, vcpu)
        self._answer: Hyperv | None = None
        self._armed = False

    def answer(self, exit_: Hyperv) -> None:
        exit_.block = True
        self._answer = exit_

    def _answered(self) -> bool:
        return self._answer is not None and self._answer.block

    def _set_block(self, block: bool) -> None:
        self.calls += 2
        events = self.vcpu.get_vcpu_events()
        events.hv_vtl_block = block
        self.vcpu.set_vcpu_events(events, EventsValid.HV_VTL_BLOCK)
        self._armed = block

    def sit(self) -> bool:
        if not (self._armed or self._answered()):
            self._set_block(True)
        self.calls += 1
        woken = isinstance(self.vcpu.run(), SystemEventExit)
        if woken:
            self._armed = False
        return woken

    def leave(self) -> None:
        if self._answered():
            assert self._answer is not None
            self._answer.block = False
        elif self._armed:
            self._set_block(False)


class Blocking(Waits):
    """A `Waiter` for each VTL above 0."""

    def __init__(self, vp: Vp, waiter: type[Waiter]) -> None:
        super().__init__(vp)
        self._make = waiter
        self._waiters: dict[Vcpu, Waiter] = {}
        """Replaced whole."""
        self._suspended: tuple[Waiter, ...] = ()
        self._retired: list[Waiter] = []
        self._calls_retired = 0

    @property
    def calls(self) -> int:
        return self._calls_retired + sum(waiter.calls for waiter in self._waiters.values())

    def added(self, level: int, vcpu: Vcpu) -> None:
        if level:
            self._waiters = {**self._waiters, vcpu: self._make(self.vp, level, vcpu)}

    def answer(self, vcpu: Vcpu, exit_: Hyperv) -> None:
        if (waiter := self._waiters.get(vcpu)) is not None:
            waiter.answer(exit_)

    def entering(self, level: int) -> None:
        for waiter in self._waiters.values():
            if waiter.level <= level:
                waiter.wanted(False)

    def changed(self, source: int, giver: Vcpu, newcomer: Vcpu) -> None:
        self.settle()
        if self.vp.must_leave():
            # Who stops, parks or ends signals every vCPU; the newcomer's waiter may have taken that signal.
            newcomer.signal()

    def settle(self) -> None:
        active = self.vp.active.load()
        for waiter in self._waiters.values():
            waiter.wanted(waiter.level > active)

    def pending(self, vcpu: Vcpu) -> bool:
        waiter = self._waiters.get(vcpu)
        return waiter is not None and waiter.woken.load()

    def hears(self, level: int, active: int) -> bool:
        """A wait says that there is an event. For VINA it matters that there is another one: kicks tell."""
        return level < active and self.vp.vina.enabled(active)

    @contextmanager
    def alone(self, vcpu: Vcpu) -> Iterator[None]:
        waiter = self._waiters.get(vcpu)
        if waiter is not None:
            waiter.keep_out()
        try:
            with vcpu.mutex:
                if waiter is not None:
                    # A start makes it runnable, which must not be taken for what the waiter has to undo.
                    waiter.leave()
                yield
        finally:
            if waiter is not None:
                waiter.let_in()

    def suspend(self) -> None:
        self._suspended = tuple(self._waiters.values())
        for waiter in self._suspended:
            waiter.keep_out()

    def resume(self) -> None:
        suspended, self._suspended = self._suspended, ()
        for waiter in suspended:
            waiter.let_in()
        retired, self._retired = self._retired, []
        for waiter in retired:
            waiter.end()

    def reset(self) -> None:
        retired, self._waiters = self._waiters, {}
        self._retired.extend(retired.values())
        self._calls_retired += sum(waiter.calls for waiter in retired.values())

    def end(self) -> None:
        for waiter in self._waiters.values():
            waiter.end()


_WAITERS: Final[dict[VtlWait, type[Waiter]]] = {
    VtlWait.MP_STATE: MpStateWaiter,
    VtlWait.WAIT: CallWaiter,
    VtlWait.COMPLETION: CompletionWaiter,
}


def make_waits(vp: Vp, design: VtlWait) -> Waits:
    """The waits of a processor."""
    waiter = _WAITERS.get(design)
    return Poll(vp) if waiter is None else Blocking(vp, waiter)
