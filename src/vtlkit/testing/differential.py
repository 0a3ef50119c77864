"""The same guest on two engines: what it does to the machine, and what it is told, must be the same.

`record` runs a machine under a trace; `stories` makes of the trace what each vCPU of each VTL has lived through, a line
an event, without what engines may differ in; `compare` finds where two of them part. Of a vCPU the order of events
counts; between vCPUs it does not: which processor comes first is a matter of time.

What engines may differ in is data, with the reason: `UNTOLD`, `CLOCK_MSRS`, `CLOCK_PORTS`, and the rules in `_Teller`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vtlkit.engine.api import EngineFactory
from vtlkit.host.api import RunnableHost
from vtlkit.hvdef import msrs
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.trace import events
from vtlkit.trace.events import Event, vcpu_name
from vtlkit.trace.tracer import Tracer
from vtlkit.vmm.config import MachineConfig
from vtlkit.vmm.machine import Machine
from vtlkit.x86 import msr
from vtlkit.x86.apic import APIC_EOI, APIC_TMCCT
from vtlkit.x86.exceptions import PFERR_FETCH, PFERR_WRITE

UNTOLD: Final = {
    "kvm_entry": "how often the guest is entered is the engine's affair: kicks, windows, budgets, exits of its own",
    "kvm_vcpu_block": "whether a processor sleeps or finds that it need not depends on when the others act",
    "kvm_vcpu_wakeup": "as kvm_vcpu_block",
    "kvm_vcpu_kick": "what has to be kicked depends on where the vCPU is at that moment",
    "kvm_vcpu_signal": "as kvm_vcpu_kick",
    "kvm_make_request": "as kvm_vcpu_kick",
    "kvm_apic_accept_irq": "interrupts come when timers and other processors have them come",
    "kvm_apic_ipi": "start-up code sends a second SIPI if the first has not been answered in time",
    "kvm_inj_virq": "as kvm_apic_accept_irq: between which two instructions one is taken is a matter of time",
    "kvm_inj_nmi": "as kvm_inj_virq",
    "kvm_eoi": "as kvm_inj_virq",
    "kvm_memory_change": "it is the VM's, and whose task makes it is told by hypercalls and WRMSRs",
    "check_step": "no run of a machine has such",
}
"""Events of which nothing is told -> why."""
_HALTS: Final = "halts"
TOLD_EXITS: Final = {"hlt": _HALTS, "shutdown": "triple fault", "internal_error": "cannot go on"}
"""Exits of the engine that are told as such; of others what they come to is told. HLT of a machine with one processor
only: with others, what a processor waits for may be there before it halts. CPUID, PAUSE, RDTSC and moves of
control registers exit on some engines only; windows, forced exits and the preemption timer are how an engine is told to
wait for something; a first access to a device's page is a memory fault that the hypervisor answers by itself."""
CLOCK_MSRS: Final = {
    msr.MSR_IA32_TSC,
    msr.MSR_IA32_TSC_ADJUST,
    msr.MSR_IA32_TSC_DEADLINE,
    msrs.HV_X64_MSR_VP_RUNTIME,
    msrs.HV_X64_MSR_TIME_REF_COUNT,
    msrs.HV_X64_MSR_TSC_FREQUENCY,
    *range(msrs.HV_X64_MSR_STIMER0_COUNT, msrs.HV_X64_MSR_STIMER3_COUNT + 1, 2),
    msr.APIC_BASE_MSR + (APIC_TMCCT >> 4),
}
"""Values are times, or the host's frequency. Reads are not told: how often a guest looks at the clock until it is
time is a matter of time."""
CLOCK_PORTS: Final = {*range(0x40, 0x44), 0x61, *range(0x70, 0x72), *range(0x608, 0x60C)}
"""PIT, speaker gate, RTC, PM timer: as CLOCK_MSRS."""
INTERRUPT_MSRS: Final = {msrs.HV_X64_MSR_EOI, msrs.HV_X64_MSR_EOM, msr.APIC_BASE_MSR + (APIC_EOI >> 4)}
"""Writes that end an interrupt or take a message are not told: there are as many as timers have come."""
VTL_SWITCHES: Final = {HvCallCode.HvCallVtlCall, HvCallCode.HvCallVtlReturn}
"""They have no parameters: what is in those registers is left over, and may be a time."""
_SERIAL: Final = 0x3F8
_SERIAL_STATUS: Final = 0x3FD
_SERIAL_CONTROL: Final = 0x3FB
_DIVISOR_ACCESS: Final = 0x80
_ANY: Final = "(any)"
_NOTHING: Final = "(nothing more)"
CONTEXT: Final = 6
"""Lines of a report before the difference, and of each side from there on."""

Mask = tuple[str, str]
"""A regular expression, and what is told in place of what it matches."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a run left behind: how it ended, what the guest has said, and `stories` of its events."""

    outcome: str
    console: str
    stories: dict[str, list[str]]
    events: Sequence[Event] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two runs part, in the story of `where` (a vCPU, the outcome, or the console).

    `same`: the last lines of those before, `count` in all, that are equal; `left`, `right`: how each goes on.
    """

    where: str
    count: int
    same: list[str]
    left: list[str]
    right: list[str]

    def describe(self, left: str = "left", right: str = "right") -> str:
        """Several lines for a person. `left`, `right`: what to call the two runs."""
        lines = [f"{self.where}: {self.count} the same, then not", *(f"      {line}" for line in self.same)]
        for name, side in ((left, self.left), (right, self.right)):
            lines += [f"  {name}:", *(f"    > {line}" for line in side or [_NOTHING])]
        return "\n".join(lines)


def record(
    image: Path,
    config: MachineConfig,
    host: RunnableHost,
    engines: EngineFactory,
    *,
    timeout_ns: int | None = None,
    masks: Sequence[Mask] = (),
    prepare: Callable[[Machine], None] = lambda _: None,
) -> Recording:
    """Run an image to its end (`timeout_ns` of the host's clock at most). `prepare` may change the machine before.

    Host and engines stay the caller's. Raises LoadError, as `Machine.load`.
    """
    kept = _Everything()
    console = bytearray()
    machine = Machine(config, host, engines, console.extend, trace := Tracer(host.now_ns, host.context, kept))
    machine.load(image)
    prepare(machine)
    result = machine.run(timeout_ns)
    trace.close()
    outcome = f"{result.outcome.value}, status {result.status}: {result.message}"
    text = _masked(console.decode(errors="backslashreplace"), masks)
    return Recording(outcome, text, stories(kept.events, masks=masks), kept.events)


def compare(left: Recording, right: Recording) -> list[Difference]:
    """Where the two part first, for each vCPU, the console and the outcome; empty if nowhere.

    Of machines with several processors the lines of the console may come in any order.
    """
    several = len({name.rpartition("-")[2] for name in (*left.stories, *right.stories)}) > 1
    said = [recording.console.splitlines() for recording in (left, right)]
    if several:
        said = [sorted(lines) for lines in said]
    found = [
        *(_part(name, left.stories.get(name, []), right.stories.get(name, [])) for name in _names(left, right)),
        _part("console", *said),
        _part("outcome", [left.outcome], [right.outcome]),
    ]
    return [difference for difference in found if difference is not None]


def _names(left: Recording, right: Recording) -> list[str]:
    return sorted(left.stories.keys() | right.stories.keys())


def _part(where: str, left: list[str], right: list[str]) -> Difference | None:
    if left == right:
        return None
    pairs = enumerate(zip(left, right, strict=False))
    at = next((number for number, (one, other) in pairs if one != other), min(len(left), len(right)))
    return Difference(where, at, left[max(at - CONTEXT, 0) : at], left[at : at + CONTEXT], right[at : at + CONTEXT])


class _Everything:
    """A sink that keeps it all."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, batch: Sequence[Event]) -> None:
        self.events.extend(batch)

    def close(self) -> None:
        """Nothing to end."""


def stories(trace: Iterable[Event], *, masks: Sequence[Mask] = ()) -> dict[str, list[str]]:
    """By vCPU (`vtl0-vcpu1`), what it has lived through: see the module. `masks`: for what a guest says that engines
    differ in, as where in the hypercall page something is."""
    kept = [event for event in trace if event.vcpu != events.NO_VCPU and event.name not in UNTOLD]
    alone = len({event.vcpu for event in kept}) <= 1
    tellers: dict[str, _Teller] = {}
    for event in kept:
        name = vcpu_name(event.vm, event.vcpu)
        tellers.setdefault(name, _Teller(alone)).take(event)
    return {name: [_masked(line, masks) for line in teller.end()] for name, teller in sorted(tellers.items())}


def _masked(text: str, masks: Sequence[Mask]) -> str:
    for pattern, instead in masks:
        text = re.sub(pattern, instead, text)
    return text


class _Teller:
    """One vCPU's story, event by event."""

    def __init__(self, alone: bool) -> None:
        """`alone`: there is no other processor."""
        self._alone = alone
        self._lines: list[str] = []
        self._said = ""
        """Of the console's line that the guest is writing."""
        self._divisor = False
        """The serial port's data register is its divisor now."""
        self._fault: str | None = None
        """A memory fault of which nobody knows yet whether user space is told."""

    def take(self, event: Event) -> None:
        _TELL[type(event)](self, event)

    def end(self) -> list[str]:
        self._say_rest()
        return self._lines

    def _tell(self, line: str) -> None:
        self._say_rest()
        self._lines.append(line)

    def _poll(self, line: str) -> None:
        """What a guest does again and again until it is as wanted: once is all that is told."""
        if self._said or not self._lines or self._lines[-1] != line:
            self._tell(line)

    # --- exits ------------------------------------------------------------------------------------------------------

    def exit(self, event: events.KvmExit) -> None:
        self._fault = None
        what = TOLD_EXITS.get(event.reason)
        if what is not None and (self._alone or what is not _HALTS):
            self._poll(what)

    def user_exit(self, event: events.KvmUserspaceExit) -> None:
        # Another fault is of a map that is not up to date, or the first touch of a device's page.
        if event.reason == "KVM_EXIT_MEMORY_FAULT" and self._fault is not None:
            self._tell(self._fault)
        self._fault = None

    def page_fault(self, event: events.KvmPageFault) -> None:
        code = event.error_code
        verb = "fetches from" if code & PFERR_FETCH else "writes" if code & PFERR_WRITE else "reads"
        self._fault = f"{verb} {event.address:#x} at RIP {event.rip:#x}, which is not permitted"

    # --- devices ----------------------------------------------------------------------------------------------------

    def port(self, event: events.KvmPio) -> None:
        port = event.port
        line = f"{port:#x} size {event.size}: {event.value:#x}"
        if event.write and port == _SERIAL and event.size == 1 and not self._divisor:
            self._say(event.value)
        elif event.write:
            if port == _SERIAL_CONTROL:
                self._divisor = bool(event.value & _DIVISOR_ACCESS)
            self._tell(f"out {line}")
        elif port != _SERIAL_STATUS and port not in CLOCK_PORTS:
            # The serial port's status is asked for before each character.
            self._poll(f"in {line}")

    def _say(self, character: int) -> None:
        if character == ord("\n"):
            self._lines.append(f"says {self._said!r}")
            self._said = ""
        else:
            self._said += chr(character)

    def _say_rest(self) -> None:
        if self._said:
            self._lines.append(f"says {self._said!r}, no line's end")
            self._said = ""

    def memory(self, event: events.KvmMmio) -> None:
        line = f"{event.gpa:#x} size {event.size}: {event.value:#x}"
        if event.write:
            self._tell(f"store to {line}")
        else:
            self._poll(f"load from {line}")

    # --- instructions -----------------------------------------------------------------------------------------------

    def msr(self, event: events.KvmMsr) -> None:
        is_time = event.index in CLOCK_MSRS
        value = f"{_ANY if is_time else f'{event.value:#x}'}{', #GP' if event.exception else ''}"
        line = f"{'wrmsr' if event.write else 'rdmsr'} {event.index:#x}: {value}"
        if event.index in (INTERRUPT_MSRS if event.write else CLOCK_MSRS) and not event.exception:
            return
        if event.index != msr.MSR_EFER:
            self._tell(line)
        else:
            # Where the kernel emulates kernel mode, a WRMSR that changes EFER is executed twice.
            self._poll(line)

    def hypercall(self, event: events.KvmHvHypercall) -> None:
        if event.code in VTL_SWITCHES:
            self._tell(HvCallCode(event.code).name)
        else:
            self.payload(event)

    def payload(self, event: Event) -> None:
        """What is the same on all engines word by word."""
        self._tell(f"{event.name.removeprefix('kvm_')}: {event.payload()}")

    def exception(self, event: events.KvmInjException) -> None:
        # Whether the first delivery was cut short depends on what the engine had to look at meanwhile.
        if not event.reinjected:
            self.payload(event)


_TELL: Final[dict[type[Event], Callable[[_Teller, Any], None]]] = {
    events.KvmExit: _Teller.exit,
    events.KvmUserspaceExit: _Teller.user_exit,
    events.KvmPageFault: _Teller.page_fault,
    events.KvmPio: _Teller.port,
    events.KvmMmio: _Teller.memory,
    events.KvmMsr: _Teller.msr,
    events.KvmHypercall: _Teller.payload,
    events.KvmHvHypercall: _Teller.hypercall,
    events.KvmHvHypercallDone: _Teller.payload,
    events.KvmInjException: _Teller.exception,
    events.KvmNestedVmenter: _Teller.payload,
    events.KvmNestedVmexitInject: _Teller.payload,
    events.VtlSwitch: _Teller.payload,
}
