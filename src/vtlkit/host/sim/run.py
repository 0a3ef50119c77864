"""Tasks and the main loop of the simulator. Counterpart: kernel/sched/core.c.

Promise: exactly one task runs at a time, and a task loses control only in `_switch`, the one suspension point. Who runs
next is the scheduler's decision; what time it is, the clock's. `running` is the task whose code executes, whichever of
its greenlets that is; outside `run()`, and in interrupts that hit no task, it is the boot task, which may not block.

Everything here is touched by one greenlet at a time and is not locked.
"""

from __future__ import annotations

from greenlet import GreenletExit, getcurrent

from vtlkit.host.alarms import NEVER, Alarm
from vtlkit.host.sim.clock import Clock
from vtlkit.host.sim.report import Deadlock, describe_deadlock
from vtlkit.host.sim.schedulers import ALONE_SLICE_NS, Scheduler
from vtlkit.host.sim.task import Obstacle, SimTask
from vtlkit.host.taskstate import TaskState

RELAX_NS = 250
"""Virtual time that one `relax()` takes: a task that polls for a time makes progress."""
_RUNNING = TaskState.RUNNING
_INTERRUPTIBLE = TaskState.INTERRUPTIBLE


class RunLoop:
    """What the parts of the simulator share. Not for code outside `host.sim`: that sees `Simulator`, a `Host`."""

    def __init__(self, scheduler: Scheduler, instrument: bool) -> None:
        self.clock = Clock(self.fail)
        self.scheduler = scheduler
        self.instrument = instrument
        self.ready: list[SimTask] = []
        """Tasks that could run, longest waiting first; the running one is not among them."""
        self.tasks: list[SimTask] = []
        """Every task not finished, in the order of `spawn`."""
        self.boot = SimTask(self, _nothing, "boot", True, scheduler.slice_ns)
        self.running = self.boot
        self.attention = False
        """The main loop wants control back: the run is stopping, failing or pausing."""
        self.killing = False
        self.switches = 0
        """Times that control was given to a task."""
        self._stopping = False
        self._live = 0
        self._in_run = False
        self._hub = getcurrent()
        self._starting: SimTask | None = None
        """Drawn by a task to run next, and never run before: the main loop starts it."""
        self._failure: BaseException | None = None

    # --- the main loop ------------------------------------------------------------------------------------------------

    def run_loop(self, until: int | None) -> None:
        """Run until no task but daemons is left, `stop()`, a failure, or time `until`. Raises what a task raised."""
        assert not self._in_run, "run() inside run()"
        self._in_run = True
        self.attention = self._failure is not None
        self._hub = getcurrent()
        for task in self.tasks:
            task.greenlet.parent = self._hub
        pause = _Pause(self)
        if until is not None:
            self.clock.arm(pause, until)
        try:
            self._loop(idle=until is not None and self._live == 0)
        except BaseException as error:  # noqa: BLE001 - re-raised below, when the tasks have been ended
            self._failure = error
        if pause.ticket:
            self.clock.disarm(pause)
        self._in_run = False
        if self._stopping or self._failure is not None:
            self.kill_all()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _loop(self, *, idle: bool) -> None:
        """`idle`: there are no tasks, and only time ends this run."""
        clock = self.clock
        while not self.attention and (self._live or idle):
            if clock.next <= clock.now:
                clock.advance(clock.now)
            elif self.ready:
                self._run(self.ready.pop(self.scheduler.next(self.ready)))
            elif clock.next < NEVER:
                clock.advance(clock.next)
            else:
                raise Deadlock(describe_deadlock(self.tasks, clock.now))

    def _run(self, task: SimTask | None) -> None:
        """Give control to `task`, and to those that are drawn and must be started, until it comes back."""
        while task is not None:
            self.running = task
            self.switches += 1
            task.resume.switch()
            task, self._starting = self._starting, None
        self.running = self.boot

    def stop(self) -> None:
        """End the run: every task is ended at its next blocking call, `finally` blocks and all. Never blocks."""
        self._stopping = self.attention = True
        if not self._in_run:
            self.kill_all()

    def fail(self, error: BaseException, where: str) -> None:
        """End the run with an error that `run()` raises."""
        error.add_note(f"in {where} at {self.clock.now} ns")
        self.attention = True
        if self._failure is None:
            self._failure = error
        elif self._failure is not error:
            self._failure.add_note(f"then in {where}: {error!r}")

    def kill_all(self) -> None:
        """End every task. Thrown into a task's own greenlet, so that nothing but its `finally` blocks runs."""
        self.killing = True
        for task in list(self.tasks):
            self.running = task
            task.greenlet.throw(GreenletExit)
            if not task.finished:
                task.finished = True
                self.task_finished(task)
        self.running = self.boot
        self.ready.clear()
        self.killing = self._stopping = self.attention = False

    # --- tasks --------------------------------------------------------------------------------------------------------

    def add_task(self, task: SimTask) -> None:
        task.greenlet.parent = self._hub
        self.tasks.append(task)
        self.ready.append(task)
        if not task.daemon:
            self._live += 1

    def task_finished(self, task: SimTask) -> None:
        self.tasks.remove(task)
        if not task.daemon:
            self._live -= 1
        if task.ticket:
            self.clock.disarm(task)
        self.ready.extend(task.joiners)
        task.joiners.clear()

    # --- the suspension point -----------------------------------------------------------------------------------------

    def _switch(self, following: SimTask | None) -> None:
        """Give control to `following`, or to the main loop. Returns when somebody gives it back to this task.

        A greenlet stands on the stack of whoever starts it and inherits the depth of its recursion, so that tasks
        started by tasks would nest: only the main loop starts one.
        """
        self.running.resume = getcurrent()
        if following is None:
            self._hub.switch()
        elif following.resume:
            self.running = following
            self.switches += 1
            following.resume.switch()
        else:
            self._starting = following
            self._hub.switch()

    def _suspend(self) -> None:
        """Give control away; the running task is not runnable until somebody makes it so."""
        ready = self.ready
        if ready and not self.attention and self.clock.next > self.clock.now:
            self._switch(ready.pop(self.scheduler.next(ready)))
        else:
            self._switch(None)

    def _yield_to(self, index: int) -> None:
        """Give control to `ready[index]`; the running task stays runnable, last in line."""
        following = self.ready.pop(index)
        self.ready.append(self.running)
        self._switch(following)

    def _yield_to_loop(self) -> None:
        """The main loop has asked for control; the running task stays runnable, first in line."""
        if self.killing:
            raise GreenletExit
        self.ready.insert(0, self.running)
        self._switch(None)

    def _check_may_block(self) -> None:
        if self.clock.in_interrupt:
            raise AssertionError("blocking call in interrupt context")
        if self.running is self.boot:
            raise AssertionError("blocking call outside of a task")
        if self.killing:
            raise GreenletExit

    # --- what blocks, and what may ------------------------------------------------------------------------------------

    def block(self, obstacle: Obstacle) -> None:
        """Wait until somebody puts the running task back on `ready`; signals do not end this."""
        self._check_may_block()
        task = self.running
        task.blocked_on = obstacle
        task.blocked_since = self.clock.now
        self._suspend()
        task.blocked_on = None

    def schedule(self, deadline_ns: int | None = None) -> None:
        if self.instrument:
            self.access_point()
        task = self.running
        if task.state is _RUNNING:
            return
        self._check_may_block()
        clock = self.clock
        if clock.next <= clock.now:
            clock.advance(clock.now)
        if deadline_ns is not None:
            if deadline_ns <= clock.now:
                task.state = _RUNNING
            else:
                clock.arm(task, deadline_ns)
        if task.signalled and task.state is _INTERRUPTIBLE:
            task.state = _RUNNING
        if task.state is not _RUNNING:
            task.asleep = True
            task.blocked_on = task.queues[-1] if task.queues else _NO_QUEUE
            task.blocked_since = clock.now
            self._suspend()
            task.blocked_on = None
        if task.ticket:
            clock.disarm(task)

    def relax(self) -> bool:
        clock = self.clock
        now = clock.now + RELAX_NS
        if now < clock.next:
            clock.now = now
        else:
            clock.advance(max(clock.next, clock.now))
        if not (self.ready or self.attention) or self.running is self.boot:
            return False
        if self.attention:
            self._yield_to_loop()
        else:
            self._yield_to(self.scheduler.next(self.ready))
        return True

    def consume_ns(self, duration_ns: int) -> None:
        assert duration_ns >= 0, "time does not go back"
        clock = self.clock
        now = clock.now + duration_ns
        if now < clock.next:
            clock.now = now
        else:
            clock.advance(now)
        if (self.ready or self.attention) and self.running is not self.boot:
            if self.attention:
                self._yield_to_loop()
            else:
                index = self.scheduler.after_slice(self.running, self.ready, duration_ns)
                if index >= 0:
                    self._yield_to(index)

    def guest_budget_ns(self) -> int:
        clock = self.clock
        budget = self.scheduler.guest_slice(self.running) if self.ready else ALONE_SLICE_NS
        left = clock.next - clock.now
        if budget > left:
            budget = left
        return budget if budget > 0 else 1

    def access_point(self) -> None:
        """The running task is about to touch shared state: instrumented runs may let others go first."""
        if not self.instrument or self.running is self.boot or self.clock.in_interrupt or self.killing:
            return
        if self.attention:
            self._yield_to_loop()
        elif self.ready:
            index = self.scheduler.at_access(self.ready)
            if index >= 0:
                self._yield_to(index)


class _Pause(Alarm):
    """Gives control to the main loop at the time that `run(until=...)` named."""

    __slots__ = ("_loop",)

    def __init__(self, loop: RunLoop) -> None:
        super().__init__()
        self._loop = loop

    def expire(self) -> None:
        self._loop.attention = True

    def alarm_name(self) -> str:
        return "end of the run"


class _NoQueue:
    def describe_wait(self) -> str:
        return "a signal or a deadline (it is in no wait queue)"


_NO_QUEUE = _NoQueue()


def _nothing() -> None:
    """What the boot task runs: it is never switched to."""
