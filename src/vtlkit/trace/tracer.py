"""What the hypervisor calls where something happens: a `Tracer` for the run, a `VmTrace` a VM, a `VcpuTrace` a vCPU.

A tracepoint is `if vcpu.trace is not None: vcpu.trace.kick()`: off, it costs that test. Nothing here blocks, makes a
scheduling point or draws a choice, so that a run is the same with and without a trace; that is also why there is no
host lock in here. What tasks share instead is stepped through by single operations of the interpreter, which the
threads host relies on as well: events go to the end of one deque, kick IDs come from one counter, and who takes the
turn to write (`_turn.pop`) is the only one that takes events out. Events of two threads may be in the file in another
order than that of their times, by what one thread needs from reading the clock to handing the event over.

A sink that fails ends the trace, not the run: the error is kept in `Tracer.error`, and what comes after is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

from vtlkit.trace import events
from vtlkit.trace.events import NO_VCPU, Event, vcpu_name
from vtlkit.trace.sinks import Sink
from vtlkit.trace.template import Value

BATCH: Final = 512
"""Events that wait in memory before a vCPU that enters the guest or sleeps gives them to the sink."""


class Tracer:
    """The trace of one run."""

    def __init__(self, now_ns: Callable[[], int], context: Callable[[], str], sink: Sink) -> None:
        """`now_ns`: the host's clock. `context`: the name of the task or timer whose code is running."""
        self.now_ns = now_ns
        self.context = context
        self.kick_ids = count(1)
        self.running: dict[str, str] = {}
        """The vCPU that each task entered last, by names."""
        self.error: OSError | None = None
        self._sink: Sink | None = sink
        self._waiting: deque[Event] = deque()
        self._turn = [None]

    def vm(self, name: str) -> VmTrace:
        """The part of the trace that a VM writes."""
        return VmTrace(self, name)

    def emit(self, event: Event) -> None:
        """Add an event. From any task, under any lock, and from interrupt context; never blocks."""
        self._waiting.append(event)

    def flush_batch(self) -> None:
        """`flush` if a batch waits."""
        if len(self._waiting) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Give the sink what waits, unless another thread is doing so. May wait for a file: only where a task may."""
        try:
            self._turn.pop()
        except IndexError:
            return
        try:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if self._sink is not None:
                self._sink.write(batch)
        except OSError as error:
            self.error, self._sink = error, None
        finally:
            self._turn.append(None)

    def close(self) -> None:
        """Write what is left and end the sink. Nothing emits any more."""
        self.flush()
        sink, self._sink = self._sink, None
        if sink is not None:
            try:
                sink.close()
            except OSError as error:
                self.error = error

    def source(self) -> str:
        """What the running code is called as the cause of something: the vCPU that its task runs, else its context."""
        context = self.context()
        return self.running.get(context, context)


class VmTrace:
    """What is traced of a VM."""

    __slots__ = ("_tracer", "name")

    def __init__(self, tracer: Tracer, name: str) -> None:
        self._tracer = tracer
        self.name = name

    def vcpu(self, vcpu_id: int) -> VcpuTrace:
        """The part of the trace that one vCPU writes."""
        return VcpuTrace(self._tracer, self.name, vcpu_id)

    def memory_change(self, changes: Iterable[tuple[int, int, bool]]) -> None:
        """(gpa, size, whether the backing changed) of each range."""
        tracer = self._tracer
        now, task = tracer.now_ns(), tracer.context()
        for gpa, size, backing in changes:
            tracer.emit(events.KvmMemoryChange(now, task, self.name, NO_VCPU, gpa, size, backing))


class VcpuTrace:
    """What is traced of a vCPU. `kick`, `kick_running`, `signal`, `make_request` and `accept_irq` come from any task,
    all else from its own."""

    __slots__ = (
        "_blocked_ns",
        "_exit_kick",
        "_last_kick",
        "_seen_kick",
        "_tracer",
        "_vcpu",
        "_vm",
        "name",
        "unsynced_exits",
    )

    def __init__(self, tracer: Tracer, vm: str, vcpu_id: int) -> None:
        self._tracer = tracer
        self._vm = vm
        self._vcpu = vcpu_id
        self.name = vcpu_name(vm, vcpu_id)
        self._last_kick = 0
        """The newest kick. Written by who kicks."""
        self._seen_kick = 0
        """Kicks up to here brought about nothing that is still to come. Written by the vCPU's task."""
        self._exit_kick = 0
        """The kick that makes the engine stop."""
        self._blocked_ns = 0
        self.unsynced_exits = 0
        """Exits that a deterministic host's clock does not contain yet."""

    def _emit(self, kind: Callable[..., Event], *values: Value, ahead_ns: int = 0) -> None:
        tracer = self._tracer
        tracer.emit(kind(tracer.now_ns() + ahead_ns, tracer.context(), self._vm, self._vcpu, *values))

    # --- the run loop -----------------------------------------------------------------------------------------------

    def entry(self, rip: int, immediate_exit: bool, ahead_ns: int) -> None:
        """`ahead_ns`: by what a deterministic host's clock is behind, here and at `exit`."""
        tracer = self._tracer
        tracer.flush_batch()
        tracer.running[tracer.context()] = self.name
        self._seen_kick = self._last_kick
        self._emit(events.KvmEntry, rip, immediate_exit, ahead_ns=ahead_ns)

    def exit(self, reason: str, rip: int, info: tuple[int, int, int, int], ahead_ns: int) -> None:
        """`info`: EXITINFO1, EXITINFO2, EXITINTINFO and its error code."""
        kick, self._exit_kick = self._exit_kick, 0
        self._seen_kick = max(self._seen_kick, kick)
        self.unsynced_exits += 1
        self._emit(events.KvmExit, reason, rip, *info, kick, ahead_ns=ahead_ns)

    def userspace_exit(self, reason: str, number: int) -> None:
        self._emit(events.KvmUserspaceExit, reason, number)

    def block(self, state: str) -> None:
        """Before the vCPU sleeps; `wakeup` comes after. `state`: why."""
        tracer = self._tracer
        tracer.flush_batch()
        tracer.running[tracer.context()] = self.name
        self._blocked_ns = tracer.now_ns()
        self._emit(events.KvmVcpuBlock, state)

    def wakeup(self) -> None:
        """The sleep that `block` announced is over."""
        kick, seen = self._last_kick, self._seen_kick
        self._seen_kick = kick
        waited = self._tracer.now_ns() - self._blocked_ns
        self._emit(events.KvmVcpuWakeup, waited, True, True, kick if kick > seen else 0)

    def polled(self, ns: int, valid: bool) -> None:
        """A halt-poll of `ns` is over; `valid`: a wake event came."""
        kick = self._last_kick
        self._emit(events.KvmVcpuWakeup, ns, False, valid, kick if valid and kick > self._seen_kick else 0)

    def vtl_switch(self, source: int, target: int, reason: str) -> None:
        self._emit(events.VtlSwitch, source, target, reason)

    # --- from any task ----------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """Before a kick takes effect: what it wakes finds its ID. A vCPU's own task kicks nobody by it."""
        source = self._tracer.source()
        if source != self.name:
            self._last_kick = number = next(self._tracer.kick_ids)
            self._emit(events.KvmVcpuKick, number, source)

    def kick_running(self) -> None:
        """A kick, or a request that lets a blocked vCPU sleep, makes the engine stop."""
        if self._last_kick == self._seen_kick:
            self.kick()
        self._exit_kick = self._last_kick

    def signal(self) -> None:
        self._emit(events.KvmVcpuSignal, self._tracer.source())

    def make_request(self, request: str) -> None:
        self._emit(events.KvmMakeRequest, request, self._tracer.source())

    # --- interrupts -------------------------------------------------------------------------------------------------

    def accept_irq(self, apic_id: int, vector: int, mode: str, level: bool) -> None:
        self._emit(events.KvmApicAcceptIrq, apic_id, vector, mode, level)

    def ipi(self, dest_id: int, vector: int, mode: str, logical: bool, shorthand: str) -> None:
        self._emit(events.KvmApicIpi, dest_id, vector, mode, logical, shorthand)

    def inject_irq(self, vector: int, soft: bool = False, reinjected: bool = False) -> None:
        self._emit(events.KvmInjVirq, vector, soft, reinjected)

    def inject_nmi(self, reinjected: bool = False) -> None:
        self._emit(events.KvmInjNmi, reinjected)

    def inject_exception(self, exception: str, error_code: int, reinjected: bool = False) -> None:
        self._emit(events.KvmInjException, exception, error_code, reinjected)

    def eoi(self, apic_id: int, vector: int) -> None:
        self._emit(events.KvmEoi, apic_id, vector)

    # --- instructions and memory ------------------------------------------------------------------------------------

    def hypercall(self, number: int, arguments: tuple[int, int, int, int]) -> None:
        self._emit(events.KvmHypercall, number, *arguments)

    def hv_hypercall(self, control: int, input_gpa: int, output_gpa: int) -> None:
        """`control`: the hypercall input value (TLFS, "Hypercall Inputs")."""
        self._emit(
            events.KvmHvHypercall,
            control & 0xFFFF,
            bool(control >> 16 & 1),
            control >> 17 & 0x3FF,
            control >> 32 & 0xFFF,
            control >> 48 & 0xFFF,
            input_gpa,
            output_gpa,
        )

    def hv_hypercall_done(self, result: int) -> None:
        """`result`: the hypercall result value (TLFS, "Hypercall Outputs")."""
        self._emit(events.KvmHvHypercallDone, result)

    def nested_vmenter(self, rip: int, vmcb: int, nested_rip: int, words: tuple[int, int], guest_cr3: int) -> None:
        """`words`: int_ctl and EVENTINJ."""
        self._emit(events.KvmNestedVmenter, rip, vmcb, nested_rip, *words, guest_cr3)

    def nested_vmexit(self, reason: str, info: tuple[int, int], words: tuple[int, int]) -> None:
        """`words`: EXITINTINFO and its error code."""
        self._emit(events.KvmNestedVmexitInject, reason, *info, *words)

    def page_fault(self, rip: int, address: int, error_code: int) -> None:
        self._emit(events.KvmPageFault, rip, address, error_code)

    def pio(self, write: bool, port: int, size: int, value: int) -> None:
        self._emit(events.KvmPio, write, port, size, value)

    def mmio(self, write: bool, size: int, gpa: int, value: int) -> None:
        self._emit(events.KvmMmio, write, size, gpa, value)

    def msr(self, write: bool, index: int, value: int, exception: bool = False) -> None:
        self._emit(events.KvmMsr, write, index, value, exception)
