"""Entering the guest and coming back: the greenlet that the instance runs in.

A hook that must exit switches to the greenlet that called `run` and stays suspended, C frames included, until the next
`run` switches back: an exit neither stops nor restarts the translator. Belongs to the vCPU's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from greenlet import error as GreenletError
from greenlet import getcurrent, greenlet

from vtlkit.engine.api import (
    EngineError,
    Event,
    EventType,
    Exit,
    InternalError,
    PreemptionTimer,
    instructions_in,
)
from vtlkit.engine.unicorn import binding
from vtlkit.engine.unicorn.hooks import INTERRUPTED, Hooks
from vtlkit.engine.unicorn.state import (
    HF_CS64,
    HF_GUEST,
    HF_INHIBIT_IRQ,
    INTERRUPT_NMI,
)
from vtlkit.engine.unicorn.stopping import NO_CHAIN
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import (
    DR6_BS,
    RFLAGS_RF,
    RFLAGS_TF,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory

_PREEMPTION_TIMER: Final = PreemptionTimer()
_STRANDED: Final[list[Loop]] = []
"""Closed while suspended in a hook of another thread: C frames that only that thread can leave still use them."""


class Loop(Hooks):
    """`run`, what comes before it, and what ends it all."""

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        super().__init__(factory, name)
        self._physical = factory.physical
        self._event: Event | None = None
        self._executed = 0
        self._timer_at: int | None = None
        """Instructions executed when the preemption timer has run down; if none are counted, it is at zero."""
        self._budget_end = 0
        """Instructions executed when the budget is used up, while the preemption timer runs."""
        self._timer_set = False
        """Whether the limit of instructions is the one that the timer and the budget make."""
        self._inside = False
        self._unwinding = False
        self._cpu: greenlet | None = None

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        if self._timer_at is not None:
            if budget is None and self._timer_set and not (force_immediate_exit or self._before_next()):
                # A mere continuation: the limit stands.
                reason = self._enter(None) if self._physical is None else self._take_turn(None)
                return reason if reason is not INTERRUPTED else self._why_interrupted(self._timer_at)
            return self._run_timed(self._timer_at, budget, force_immediate_exit)
        if self._unfinished or self._kicked or force_immediate_exit or self._event is not None:
            early = self._before_entry(budget, force_immediate_exit)
            if early is not None:
                return early
        if self._physical is None:
            return self._enter(budget)
        return self._take_turn(budget)

    def _run_timed(self, timer: int, budget: int | None, force_immediate_exit: bool) -> Exit:
        """`run` with the preemption timer: where instructions are counted it is a budget of its own."""
        kicked = self._kicked
        self._timer_at = None
        self._timer_set = self._counting
        try:
            if self._counting:
                executed = self._executed + self._counter.value
                if budget is not None:
                    self._budget_end = executed + budget
                left = timer - executed
                reason = self.run(
                    max(min(self._budget_end - executed, left), 0),
                    force_immediate_exit=force_immediate_exit or left <= 0,
                )
            else:
                reason = self.run(None, force_immediate_exit=True)
        finally:
            self._timer_at = timer
        return reason if reason is not INTERRUPTED or kicked else self._why_interrupted(timer)

    def _before_next(self) -> bool:
        """Whether something comes before the next instruction."""
        return self._unfinished or self._kicked or self._event is not None

    def _why_interrupted(self, timer: int) -> Exit:
        """What a run without a kick before it has ended for."""
        if self._unfinished or (self._counting and self._executed + self._counter.value < timer):
            return INTERRUPTED
        return _PREEMPTION_TIMER

    def _before_entry(self, budget: int | None, force_immediate_exit: bool) -> Exit | None:
        """What comes before the next instruction; an exit if that is all."""
        if self._unfinished:
            if force_immediate_exit or self._request_high.value:
                return self._finish_instruction(budget, force_immediate_exit)
            return None
        event = self._event
        if event is not None:
            self._event = None
            if event.type is EventType.SOFTWARE:
                self.regs.rip += event.instruction_length
            interrupted = self._delivery.deliver(event)
            if interrupted is not None:
                return interrupted
        if force_immediate_exit or self._kicked:
            if budget is not None and self._counting:
                self._set_budget(budget)
            self._forget_kick()
            return INTERRUPTED
        return None

    def _finish_instruction(self, budget: int | None, force_immediate_exit: bool) -> Exit:
        """Run to the end of an unfinished I/O instruction; where instructions are not counted, to the end of its block.

        Needed too for a window that was asked for meanwhile: whether it is open is looked at between chains of blocks
        only, and the chain that the suspended block belongs to may be endless.
        """
        if not self._counting:
            if force_immediate_exit:
                self._kick_self()
            self._live.decrementer.value = NO_CHAIN
            return self._take_turn(budget)
        if budget is None:
            budget = self._limit - self._live.counter.value
        reason = self._take_turn(0)
        self._set_budget(budget)
        if force_immediate_exit or reason is not INTERRUPTED or self._unfinished or self._kicked:
            return reason
        return self._take_turn(None)

    def _take_turn(self, budget: int | None) -> Exit:
        physical = self._physical
        if physical is None:
            return self._enter(budget)
        physical.acquire(self)
        try:
            return self._enter(budget)
        finally:
            physical.release(self)

    def _enter(self, budget: int | None) -> Exit:
        if budget is not None and self._counting:
            self._limit = self._counter.value + budget
            self._count.value = self._limit
        if self._chores or self._factory.last_entered is not self:
            self._do_chores()
        self._caller = getcurrent()
        cpu = self._cpu
        if cpu is None:
            cpu = self._cpu = greenlet(self._loop)
        try:
            result: Exit = cpu.switch()
        except GreenletError as error:
            raise EngineError(f"{self.name} runs on the thread that it was first run on: {error}") from error
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return result

    def _do_chores(self) -> None:
        """What is seldom needed before an entry."""
        self._chores = False
        factory = self._factory
        if factory.last_entered is not self or self._host_wrote:
            self._forget_changed_code()
        factory.last_entered = self
        if self._code_moved:
            self._code_moved = False
            self._code.clear()
            self._lib.check(self._lib.ctl(self._handle, binding.CTL_TB_FLUSH, 0, 0), "a flush of translated code")
        if self._behind_shadow:
            self._behind_shadow = False
            self._request_high.value |= INTERRUPT_NMI >> 8
        if self._counting:
            self._count.value = self._limit
        if self._kicked:
            self._end_soon()

    def _loop(self) -> None:
        """The engine's greenlet: start the translator, say why it stopped, again."""
        lib, handle, live = self._lib, self._handle, self._live
        state = self.regs
        while True:
            state.hflags |= HF_GUEST
            self._fault = None
            if self._counting:
                # Starting resets the counter: carry on with what is left.
                executed = live.counter.value
                live.counter.value = 0
                self._executed += executed
                self._limit -= executed
                if self._limit <= 0:
                    self._forget_kick()
                    self._caller.switch(INTERRUPTED)
                    continue
            # Outside the translator QEMU keeps all flags in this field; the engine always has the form used inside.
            state.eflags = self.rflags
            self._inside = True
            error = lib.emu_start(handle, state.rip, 0, 0, self._limit)
            self._inside = False
            self.rflags = state.eflags
            self._unfinished = False
            reason = self._stopped(error)
            if reason is not None:
                self._caller.switch(reason)

    def _stopped(self, error: int) -> Exit | None:
        """Why the translator came back on its own; None if it is to go on."""
        limited = False
        if self._undo is not None:
            self._restore()
        elif self._fault is None and self._counter.value > self._count.value:
            # The limit is noticed when the next instruction has been counted.
            self._counter.value -= 1
            limited = True
        if self._deferred is not None:
            action, self._deferred = self._deferred, None
            return action()
        if self._fault is not None:
            kind, address, size = self._fault
            self._fault = None
            return self._memory_fault(kind, address, size)
        if self._behind_shadow and not (error or self._unwinding):
            self._behind_shadow = False
            self._request_high.value |= INTERRUPT_NMI >> 8
            if not self._kicked:
                return None
        if error:
            return InternalError(f"Unicorn stopped: {self._lib.describe(error)} at RIP {self.regs.rip:#x}")
        if limited or self._kicked or self._unwinding or self._failure is not None:
            self._forget_kick()
            return INTERRUPTED
        # A change of the memory map that takes rights away from the page that RIP is in stops the translator, too.
        return None

    @property
    def counts_preemption_timer(self) -> bool:
        return self._counting

    def set_preemption_timer(self, ticks: int | None) -> None:
        if not self._counting:
            if ticks:
                raise ValueError("a preemption timer counts where instructions are counted: only zero is exact here")
            self._timer_at = ticks
            return
        executed = self._executed + self._counter.value
        self._timer_set = False
        if self._timer_at is None:
            self._budget_end = executed + max(self._limit - self._counter.value, 0)
        elif ticks is None:
            self._set_budget(max(self._budget_end - executed, 0))
        self._timer_at = None if ticks is None else executed + instructions_in(ticks, self.instruction_cycles)

    def instructions(self) -> int | None:
        if not self._counting:
            return None
        return self._executed + int(self._counter.value)

    def skip(self, length: int) -> None:
        rip = self._rip.value + length
        hflags = self._hflags.value
        self._rip.value = rip if hflags & HF_CS64 else rip & 0xFFFFFFFF
        if hflags & HF_INHIBIT_IRQ:
            self._hflags.value = hflags & ~HF_INHIBIT_IRQ
        eflags = self._eflags.value
        if eflags & (RFLAGS_TF | RFLAGS_RF):
            state = self.regs
            state.eflags = eflags & ~RFLAGS_RF
            if eflags & RFLAGS_TF:
                state.dr[6] |= DR6_BS
                self.inject(Event(EventType.EXCEPTION, Vector.DB))

    # --- injection ----------------------------------------------------------------------------------------------------

    def inject(self, event: Event) -> None:
        assert self._event is None, f"{self._event} is injected already, {event} on top"
        assert not self._unfinished, "an event cannot be injected into an unfinished I/O instruction"
        self._event = event

    def injected(self) -> Event | None:
        return self._event

    def cancel_injection(self) -> Event | None:
        event, self._event = self._event, None
        return event

    # --- the end of it ------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        if self._unfinished:
            self._unwind()
        self._event = None
        self._forget_kick()

    def _unwind(self) -> None:
        """Return from the suspended hook and through the C frames below it, without effect on guest or devices."""
        assert self._cpu is not None
        if self._undo is None:
            self._cut_short()
        self._answer = 0
        self._unwinding = True
        self._lib.emu_stop(self._handle)
        self._caller = getcurrent()
        self._cpu.switch()
        self._unwinding = False

    def close(self) -> None:
        with self._alive:
            if self._closed:
                return
            self._closed = True
        if self._inside:
            # The C frames below a suspended hook must return before the instance is freed.
            try:
                self._unwind()
            except GreenletError:
                _STRANDED.append(self)
                return
        self._lib.check(self._lib.close(self._handle), "closing an instance")
        self._let_go()

    def _let_go(self) -> None:
        """Drop what the instance needed: guest RAM, and the greenlet, whose frame would keep the engine alive."""
        self._map.forget()
        self.linear.forget()
        self._code.clear()
        self._lengths.clear()
        # The registers were the instance's own memory.
        del self._callbacks, self._caller, self.regs, self._bytes
        if self._factory.last_entered is self:
            self._factory.last_entered = None
        cpu, self._cpu = self._cpu, None
        if cpu is None or cpu.gr_frame is None:
            return
        try:
            cpu.parent = getcurrent()
        except ValueError:
            # Of another thread, which ends it when it next switches or when it is over.
            return
        cpu.throw()
