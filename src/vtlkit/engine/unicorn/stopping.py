"""How running code is made to stop: budgets, kicks, windows, and instructions that must not take effect.

Shared with other tasks: `kick` stores to the interrupt request's low byte, which the vCPU's task answers by clearing
it, and then to the word that makes running code look at it: the instruction limit where instructions are counted, else
the decrementer's high half. Everything else belongs to the vCPU's task.

A running block must never be left in the middle of an instruction whose store is done: it would be executed twice. So
counted runs are ended through the limit only, which is looked at between instructions, and blocks that are not counted
are translated without Unicorn's look at the decrementer behind every access. What then cannot be left at once, because
an access is forbidden or a port denied, is made harmless and undone: see `_cut_short`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import (
    Event,
    ExceptionExit,
    Exit,
)
from vtlkit.engine.unicorn.code import Code
from vtlkit.engine.unicorn.controls import (
    EMPTY_TABLE_GPA,
)
from vtlkit.engine.unicorn.state import (
    CONTEXT_BYTES,
    INTERRUPT_NMI,
    INTERRUPT_SMI,
    INTERRUPT_VIRQ,
)
from vtlkit.x86.exceptions import Vector
from vtlkit.x86.registers import (
    CR0_PG,
    CR4_PAE,
    RFLAGS_IF,
)

if TYPE_CHECKING:
    from vtlkit.engine.unicorn.factory import UnicornFactory

NO_CHAIN: Final = 0xFFFF


class Stopping(Code):
    """What ends a run from outside, and what a hook does that cannot leave the block it was called from."""

    def __init__(self, factory: UnicornFactory, name: str) -> None:
        super().__init__(factory, name)
        self._closed = False
        self._alive = threading.Lock()
        """Held while the instance's words are stored to from outside, and while they go."""
        self._noted = False
        """Somebody wants a kick, and has not got the lock."""
        self._limit = 0
        self._kicked = False
        self._failure: BaseException | None = None
        self._deferred: Callable[[], Exit | None] | None = None
        """What is done instead of an instruction that was cut short, once the translator has stopped."""
        self._undo: bytes | None = None
        self._counted = 0
        self._held_low = self._held_high = 0
        self._behind_shadow = False
        self._window_too = 0

    # --- budgets and kicks --------------------------------------------------------------------------------------------

    def _set_budget(self, budget: int) -> None:
        """Count up to `budget` from here; a suspended block goes on from where it is."""
        self._limit = self._counter.value + budget
        self._count.value = self._limit

    def kick(self) -> None:
        # Never waits, as a signal handler may interrupt whoever holds the lock. Who finds it taken leaves a note, at
        # which the holder looks once it has let go: the kick that it is making may have been answered already.
        self._noted = True
        while self._noted and self._alive.acquire(blocking=False):
            try:
                self._noted = False
                if not self._closed:
                    self._kick_self()
            finally:
                self._alive.release()

    def _kick_self(self) -> None:
        """A kick by the vCPU's own task, in front of which nobody frees the words."""
        self._request_low.value = INTERRUPT_SMI
        self._kicked = True
        self._end_soon()

    def _end_soon(self) -> None:
        """Make running code stop: before the next instruction where they are counted, else before the next block."""
        self._chores = True
        if self._counting:
            self._count.value = 0
        else:
            self._live.decrementer.value = NO_CHAIN

    def _forget_kick(self) -> None:
        """One is answered. In this order: a kick that comes in between is answered once more and not lost."""
        self._kicked = False
        self._request_low.value = 0

    # --- windows ------------------------------------------------------------------------------------------------------

    def request_interrupt_window(self, wanted: bool) -> None:
        if wanted:
            self._request_high.value |= INTERRUPT_VIRQ >> 8
        else:
            self._request_high.value &= ~(INTERRUPT_VIRQ >> 8)

    def request_nmi_window(self, wanted: bool) -> None:
        if self._behind_shadow:
            self._behind_shadow = False
            self._request_high.value &= ~(INTERRUPT_VIRQ >> 8) | self._window_too
        if wanted:
            self._request_high.value |= INTERRUPT_NMI >> 8
        else:
            self._request_high.value &= ~(INTERRUPT_NMI >> 8)

    def _pass_shadow(self) -> bool:
        """Let the instruction that the interrupt shadow covers be executed, then look at NMIs again; whether it can be.

        The translator lets NMIs through in a shadow. Where instructions are counted the run is limited to one. Else the
        window for interrupts, which does wait for the end of a shadow, stands in; it takes RFLAGS.IF, and without it
        (MOV SS with interrupts off) the shadow is given up.
        """
        live = self._live
        self._window_too = self._request_high.value & (INTERRUPT_VIRQ >> 8)
        if self._counting:
            live.count.value = min(live.count.value, live.counter.value + 1)
        elif self.regs.eflags & RFLAGS_IF:
            self._request_high.value |= INTERRUPT_VIRQ >> 8
        else:
            self.interrupt_shadow = False
            return False
        self._behind_shadow = self._chores = True
        return True

    # --- instructions without effect ----------------------------------------------------------------------------------

    def _cut_short(self) -> None:
        """Undo, when the translator stops, whatever the present instruction and its block still do.

        A hook cannot leave translated code. Until the block has ended no access can succeed, as every translation is
        gone and an empty page table is in force, and the registers are then set back to what they are now.
        """
        state, live = self.regs, self._live
        self._undo = ctypes.string_at(ctypes.addressof(state), CONTEXT_BYTES)
        self._counted = live.counter.value
        self._hold_requests()
        state.cr[0] |= CR0_PG
        state.cr[3] = EMPTY_TABLE_GPA
        state.cr[4] &= ~CR4_PAE
        self.flush_tlb()

    def _restore(self) -> None:
        undo, self._undo = self._undo, None
        assert undo is not None
        ctypes.memmove(ctypes.addressof(self.regs), undo, CONTEXT_BYTES)
        self._live.counter.value = self._counted
        if self._held_low:
            self._kick_self()
        self._request_high.value |= self._held_high
        self._held_low = self._held_high = 0

    def _hold_requests(self) -> None:
        """Put aside kicks and windows: the translator would serve them before it stops, again and again."""
        self._held_low |= self._request_low.value
        self._held_high |= self._request_high.value
        self._request_low.value = self._request_high.value = 0

    def _raise_after(self, event: Event, address: int = 0) -> None:
        """Do `_raise` instead of the present instruction, from a hook inside translated code."""
        self._leave_after(partial(self._raise, event, address))

    def _raise(self, event: Event, address: int = 0) -> Exit | None:
        """An exception of the guest's own: deliver it, or exit if it is intercepted. `address` is a page fault's."""
        if self.exception_intercepts >> event.vector & 1:
            return ExceptionExit(event.vector, event.error_code, address, None)
        if event.vector == Vector.PF:
            self.regs.cr[2] = address
        return self._delivery.deliver(event)

    def _leave_after(self, action: Callable[[], Exit | None]) -> None:
        """Have `run` do `action` instead of the present instruction, from a hook inside translated code."""
        self._deferred = action
        self._note_flags()
        self._cut_short()
        self._lib.emu_stop(self._handle)

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run hook code; an exception is kept for `run` to raise and the translator is stopped."""
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - C frames cannot carry it; `run` raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Keep what hook code raised for `run` to raise, and stop the translator."""
        self._failure = error
        self._lib.emu_stop(self._handle)
