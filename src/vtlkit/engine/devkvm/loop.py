"""Entering the guest and coming back: KVM_RUN, what its exits mean, kicks, windows.

What is under way when KVM_RUN returns, and what the next one does about it:

| `_pending` | the kernel, at the next KVM_RUN |
| --- | --- |
| None | nothing: the vCPU is between two instructions |
| IO | finishes an access with what lies in the page: `at_boundary` is False |
| SKIP | moves RIP past an instruction that the hypervisor has emulated meanwhile (RDMSR, WRMSR) |
| PARKED | as IO, of an access that was told as a memory fault: it is undone, or goes on if a device is there now |

docs/design/devkvm.md has the race of a kick against an entry.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from vtlkit.engine.api import (
    Engine,
    Event,
    Exit,
    InternalError,
    Interrupted,
    InterruptWindow,
    NmiWindow,
    PreemptionTimer,
)
from vtlkit.engine.devkvm import abi, kernel_events, syscalls
from vtlkit.engine.devkvm.instructions import Instructions
from vtlkit.engine.devkvm.kernel_events import EXCEPTION, INTERRUPT, NMI
from vtlkit.engine.devkvm.linear import LinearMemory
from vtlkit.engine.devkvm.live import REGS_END
from vtlkit.engine.devkvm.run_page import LiveRegs
from vtlkit.engine.devkvm.system import Capabilities
from vtlkit.engine.devkvm.vcpu import KICK_SIGNAL, PROCESS_SIGNALS, KernelVcpu
from vtlkit.x86.registers import RFLAGS_IF

_KICKED: Final = frozenset({KICK_SIGNAL})

_INTERRUPTED: Final = Interrupted()
_INTERRUPT_WINDOW: Final = InterruptWindow()
_NMI_WINDOW: Final = NmiWindow()
_PREEMPTION_TIMER: Final = PreemptionTimer()

_IMMEDIATE_EXIT: Final = abi.RUN_IMMEDIATE_EXIT
_WINDOW: Final = abi.RUN_INTERRUPT_WINDOW
_CR8: Final = abi.RUN_CR8
_REGS: Final = slice(abi.RUN_SYNC, REGS_END)
_SHADOW: Final = abi.RUN_EVENTS + abi.VcpuEvents.OFFSETS["interrupt_shadow"]


STEPS_MAX: Final = 256
STEPS_A_RUN: Final = 32
"""Single steps for interrupt windows: so many may be saved up, so many are added by each `run`."""


class Pending(enum.Enum):
    """See the module."""

    IO = "an access"
    SKIP = "an emulated instruction"
    PARKED = "a refused access"


class Loop(Engine):
    """`run` and what belongs to it. All but `kick` for the vCPU's task."""

    def __init__(self, system: int, capabilities: Capabilities, name: str) -> None:
        self.name = name
        self.vcpu = KernelVcpu(system, capabilities)
        self._live = live = self.vcpu.live
        self._map = self.vcpu.map
        self.regs: LiveRegs = live.regs
        self._page = live.page
        self._bytes = live.bytes
        self.linear = LinearMemory(live, self._map, self.vcpu.maxphyaddr())
        self.code = Instructions(live, self.linear)
        self._ioctl = syscalls.small_ioctl()
        self._tgkill = syscalls.tgkill()
        self._process = os.getpid()
        self._local = threading.local()
        self._thread = 0
        self._inside = False
        self._kicked = False
        self._signalled = False
        """A kicker has sent a signal, or is about to."""
        self._closed = False
        self._event: Event | None = None
        self._pending: Pending | None = None
        self._answers: Callable[[], bool] | None = None
        """Answers an access to a port that KVM_RUN has returned with, if somebody does so without an exit."""
        self._get_cr8: Callable[[], int] | None = None
        self._put_cr8: Callable[[int], None] | None = None
        self._interrupt_window = False
        self._nmi_window = False
        self._timer_zero = False
        self._steps_left = STEPS_MAX
        self._crowded = 0
        """Interrupts in a row that had to wait for their windows: no `run` between them was without one."""
        self._debug_set: tuple[int, tuple[int, ...]] = (0, ())
        """What KVM_SET_GUEST_DEBUG was last told."""
        self._flush = False
        self._can_step = capabilities.guest_debug

    # --- kicks ------------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """From any task."""
        self._kicked = True
        if self._inside:
            self._signalled = True
            self._tgkill(self._process, self._thread, KICK_SIGNAL)

    def _this_thread(self) -> int:
        """Its number. The kick's signal is to end KVM_RUN and nothing else: a thread that is new here blocks it,
        and what is the main thread's to hear."""
        local = self._local
        try:
            thread: int = local.thread
        except AttributeError:
            main = threading.current_thread() is threading.main_thread()
            signal.pthread_sigmask(signal.SIG_BLOCK, _KICKED if main else _KICKED | PROCESS_SIGNALS)
            thread = local.thread = threading.get_native_id()
        return thread

    # --- entering ---------------------------------------------------------------------------------------------------

    def _enter(self, forced: bool) -> int:
        """One KVM_RUN, or several where accesses to ports are answered in between; 0, or the error number. The page has
        the vCPU's state afterwards.

        All that executes Python here is paid for by every exit: the page is read and written byte by byte, which costs
        less than by its structure.
        """
        live, data = self._live, self._bytes
        if live.dirty or data[_SHADOW] or data[_REGS] != live.left:
            live.write_back()
        get_cr8 = self._get_cr8
        cr8 = 0
        if get_cr8 is not None:
            data[_CR8] = cr8 = get_cr8()
        try:
            self._thread = self._local.thread
        except AttributeError:
            self._thread = self._this_thread()
        answered = self._answers
        if answered is not None and (forced or self._looks_closely()):
            answered = None
        vcpu = self.vcpu
        vcpu.shared.known = False
        ioctl, fd, run = self._ioctl, vcpu.fd, abi.RUN
        if self._signalled:
            # For a KVM_RUN that had returned already.
            self._take_signals()
        # In this order, as a kick is stored before it looks whether somebody is inside.
        self._inside = True
        data[_IMMEDIATE_EXIT] = forced or self._kicked
        result = ioctl(fd, run, 0)
        if answered is not None:
            try:
                while not result and answered():
                    # Nothing has changed that the kernel is to know: it goes on from where it is.
                    data[_IMMEDIATE_EXIT] = self._kicked
                    result = ioctl(fd, run, 0)
            except BaseException:
                # A device's error: the access is still to be finished.
                self._inside = False
                self._pending = Pending.IO
                raise
        self._inside = False
        error = 0
        if result:
            error, page = ctypes.get_errno(), self._page
            if page.kvm_dirty_regs:
                # Refused before the guest was entered: an illegal combination of registers, say.
                live.dirty |= page.kvm_dirty_regs & ~abi.SYNC_REGS
                page.kvm_dirty_regs = 0
                return error
            if error == errno.EINTR:
                self._take_signals()
        live.left = data[_REGS]
        if get_cr8 is not None and data[_CR8] != cr8 and self._put_cr8 is not None:
            self._put_cr8(data[_CR8])
        if data[EXCEPTION] or data[INTERRUPT] or data[NMI]:
            self._take_held()
        return error

    def _take_signals(self) -> None:
        """What has ended KVM_RUN stays pending, as it is blocked here: drop it, or every entry would end at once."""
        self._signalled = False
        while signal.sigtimedwait(_KICKED, 0) is not None:
            pass

    def _looks_closely(self) -> bool:
        """Whether something is to be looked at between any two instructions, which an access to a port may end."""
        return bool(self._interrupt_window or self._nmi_window or self._flush or self._debug_set[0])

    def _take_held(self) -> None:
        """What the kernel has not delivered yet is ours: it is given again with the next entry, or taken back."""
        self._event = kernel_events.take(self._live)

    def _give_event(self) -> None:
        """Have the kernel deliver what is injected with the next entry."""
        event, self._event = self._event, None
        if event is not None:
            kernel_events.give(self._live, event)

    # --- run --------------------------------------------------------------------------------------------------------

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        assert not self._closed, "the engine is closed"
        if self._steps_left < STEPS_MAX:
            self._steps_left = min(self._steps_left + STEPS_A_RUN, STEPS_MAX)
        if (
            force_immediate_exit
            or self._kicked
            or self._timer_zero
            or self._event is not None
            or self._map.refused is not None
            or self.vcpu.filter_changed
            or self._looks_closely()
        ):
            return self._run_with_care(force_immediate_exit or self._timer_zero)
        if self._pending is not None and (reason := self._resume()) is not None:
            return reason
        self._crowded = 0
        self._bytes[_WINDOW] = 0
        while True:
            error = self._enter(False)
            self._pending = None
            reason = self._error(error, False) if error else self._exit()
            if reason is not None:
                # A kick counts for one `run`, whatever it has returned for.
                self._kicked = False
                return reason
            if self.injected() is not None:
                # The kernel has been stopped from delivering it.
                return self._run_with_care(False)

    def _run_with_care(self, forced: bool) -> Exit:
        """The same with something to be done before, or looked for meanwhile."""
        if self._map.refused is not None:
            return InternalError(
                f"memory at GPA {self._map.refused:#x} is not to be executed, and KVM cannot forbid that alone"
            )
        if self._pending is not None:
            reason = self._resume()
            if reason is not None:
                return reason
        if self._pending is Pending.IO and (self._interrupt_window or self._nmi_window or self._flush):
            # A window may open right behind the access, and close again; no instruction executes on old translations.
            reason = self._finish_access()
            if reason is not None:
                return reason
        unfinished = self._pending is Pending.IO
        if not unfinished and (early := self._before_entry(forced)) is not None:
            return early
        self._prepare()
        if self._event is not None and not unfinished:
            if forced:
                return self._deliver_only(self._handlers(self._event))
            self._give_event()
        while True:
            if self._debug_set[0] or self._nmi_window or self._interrupt_window:
                self._follow()
            error = self._enter(forced)
            self._pending = None
            reason = self._error(error, forced) if error else self._exit()
            if reason is None and not error and self._page.exit_reason == abi.EXIT_MMIO and self._looks_closely():
                # A device has answered: as above.
                reason = self._finish_access() or self._before_entry(forced)
            if reason is not None:
                self._kicked = False
                return reason
            # Again, if the kernel has been stopped from delivering it.
            self._give_event()

    def _prepare(self) -> None:
        """What the kernel has to know before an entry."""
        if self.vcpu.filter_changed:
            self.vcpu.apply_filter()
        if self._flush and self._pending is None:
            self._flush = False
            self.vcpu.flush_tlb()
        self._page.request_interrupt_window = self._interrupt_window

    def _before_entry(self, forced: bool) -> Exit | None:
        """Exits that need no entry."""
        if self._kicked:
            # An event stays ours: what its delivery comes to, the guest decides, and it may be long.
            return self._stopped(forced)
        if self._event is None:
            if forced:
                return self._stopped(forced)
            if self._nmi_window and not self._live.nmi_masked and not self._live.shadow:
                self._nmi_window = False
                return _NMI_WINDOW
            if self._interrupt_window and self.regs.rflags & RFLAGS_IF and not self._live.shadow:
                self._interrupt_window = False
                return _INTERRUPT_WINDOW
        return None

    def _stopped(self, forced: bool) -> Exit | None:
        if self._kicked:
            self._kicked = False
            return _INTERRUPTED
        if forced:
            return _PREEMPTION_TIMER if self._timer_zero else _INTERRUPTED
        # A signal that was not for the guest, or the rest of a kick that has been answered.
        return None

    def _error(self, error: int, forced: bool) -> Exit | None:
        if error == errno.EINTR:
            return self._stopped(forced)
        if error == errno.EFAULT:
            return self._refused()
        if error == errno.EAGAIN:
            return None
        return InternalError(f"KVM_RUN: {os.strerror(error)}")

    def _finish_access(self) -> Exit | None:
        """Finish it and no more; another exit that it makes."""
        while True:
            error = self._enter(True)
            self._pending = None
            if error == errno.EINTR:
                return None
            reason = self._error(error, False) if error else self._exit()
            if reason is not None:
                return reason

    def _finish(self) -> bool:
        """Have the kernel finish what it has begun, executing nothing further; True if that has made another exit."""
        return not self._enter(True)

    # --- below ------------------------------------------------------------------------------------------------------

    def _exit(self) -> Exit | None:
        """What a KVM_RUN that has returned 0 tells; None: go on."""
        raise NotImplementedError

    def _resume(self) -> Exit | None:
        """Before an entry with something pending: do to it what the hypervisor has done meanwhile."""
        raise NotImplementedError

    def _refused(self) -> Exit | None:
        """EFAULT: what access the map refuses."""
        raise NotImplementedError

    def _follow(self) -> None:
        """Before an entry: have the kernel leave the guest where a window that it does not know of may open."""
        raise NotImplementedError

    def _debug(self) -> Exit | None:
        """KVM_EXIT_DEBUG."""
        raise NotImplementedError

    def _handlers(self, event: Event) -> tuple[int, ...]:
        """Linear addresses of the first instructions that the delivery of `event` may lead to."""
        raise NotImplementedError

    def _deliver_only(self, handlers: tuple[int, ...]) -> Exit:
        """Enter, and leave once the event is delivered."""
        raise NotImplementedError
