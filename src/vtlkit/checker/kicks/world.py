"""A virtual machine on threads, those who kick it, and what is known of each kick.

Shared: `Processor.inside`, `.interrupted` and `.woken` are written by the processor's task alone, `Kicker.waiting` and
`.rounds` by the kicker's; others read them, and the interpreter lock orders it all, as on the threads host.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vtlkit.checker.kicks.guests import DEVICE, PORT, SIZE, Guest, Kind, write_tables
from vtlkit.engine.api import EngineFactory, RamBlock
from vtlkit.host.api import Task
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.kvm_run import Intr, Io, KvmRun
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries
from vtlkit.kvm.vcpu import Mode, Vcpu
from vtlkit.kvm.vm import Vm

_YIELDS: Final = 4
"""So often the processor is yielded before a kicker sleeps between two looks."""
_SHORT_NS: Final = 20_000
_LONG_NS: Final = 1_000_000
_LINGER: Final = 8
_LINGER_NS: Final = 200_000


class Place(enum.Enum):
    """Where a processor was just before it was kicked."""

    GUEST = "in guest"
    """Its mode is IN_GUEST: it executes, or is about to."""
    RUN_LOOP = "entering"
    """In `run`, neither in the guest nor asleep: on its way in or out."""
    BLOCKED = "blocked"
    OUTSIDE = "outside"
    """Not in `run`."""


class Ended(Exception):
    """The scenario is over: a kicker need not wait any longer."""


class Processor:
    """A vCPU, its guest, and the task that runs it."""

    def __init__(self, vcpu: Vcpu, guest: Guest) -> None:
        self.vcpu = vcpu
        self.guest = guest
        self.inside = False
        """Its task is in a call of the hypervisor that may block or enter the guest."""
        self.interrupted = 0
        """Calls that ended with EINTR."""
        self.woken = 0
        """Waits that a wake event ended."""

    def place(self) -> Place:
        """A look from outside. From any task."""
        if not self.inside:
            return Place.OUTSIDE
        if self.vcpu.wait_queue.waiters():
            return Place.BLOCKED
        return Place.GUEST if self.vcpu.mode.load() == Mode.IN_GUEST_MODE else Place.RUN_LOOP

    def run(self) -> KvmRun:
        """One `run`, counted if it is interrupted. In the processor's task."""
        self.inside = True
        exit_ = self.vcpu.run()
        self.inside = False
        if type(exit_) is Intr:
            self.interrupted += 1
        return exit_

    def run_expecting(self) -> KvmRun:
        """The same; guests do nothing but what they are for."""
        exit_ = self.run()
        if type(exit_) is not Intr:
            assert type(exit_) is Io, f"{self}: {exit_}"
            assert exit_.port == PORT, f"{self}: {exit_}"
        return exit_

    def kick_again(self) -> None:
        """A second kick, which asks nobody whether it is needed."""
        self.vcpu.wait_queue.wake()
        self.vcpu.engine.kick()

    def __str__(self) -> str:
        return f"vCPU {self.guest.number}, which {self.guest.kind.value}"


@dataclass(slots=True)
class Waiting:
    """A kick that has not been answered yet."""

    what: str
    processors: Sequence[Processor]
    found: str
    since_ns: int
    again: bool = False
    """It was kicked once more."""


class Kicker:
    """A task that kicks again and again, in rounds with the others of its team: nobody's next kick stands in for one
    that another has lost."""

    def __init__(self, world: World, name: str, rounds: int, round_: Callable[[Kicker], None]) -> None:
        self.world = world
        self.name = name
        self.found: Counter[Place] = Counter()
        self.waiting: Waiting | None = None
        self.rounds = 0
        """Those that are behind it."""
        self.team: list[Kicker] = [self]
        self.at_end: Callable[[], None] = lambda: None
        """What holds when it has done all its rounds: raises AssertionError."""
        self._total = rounds
        self._round = round_
        self._host = world.host
        self._queue = world.host.wait_queue(f"{name}-queue")

    def body(self) -> None:
        try:
            while self.rounds < self._total:
                self.linger()
                self._round(self)
                self.rounds += 1
                self.until(lambda: all(other.rounds >= self.rounds for other in self.team))
            self.at_end()
        except Ended:
            pass

    def kick(
        self,
        processors: Sequence[Processor],
        what: str,
        send: Callable[[], object],
        answered: Callable[[], bool],
        *,
        counts: bool = True,
    ) -> None:
        """Kick these processors by `send`, and wait until the kick is `answered`. `what`: in a word or two. `counts`:
        it is one of those that were asked for."""
        places = [each.place() for each in processors]
        found = ", ".join(f"{each} ({place.value})" for each, place in zip(processors, places, strict=True))
        waiting = self.waiting = Waiting(what, processors, found, self._host.now_ns())
        send()
        self.until(answered)
        self.waiting = None
        if counts:
            self.found.update(places)
        if waiting.again:
            self.world.lose(waiting, "it took a second kick")

    def until(self, condition: Callable[[], bool]) -> None:
        """Look until `condition` holds, leaving the processors to others. Blocks.

        Raises:
            Ended: the scenario is over.
        """
        looks, nap_ns = 0, _SHORT_NS
        while not condition():
            if self.world.ending:
                raise Ended
            looks += 1
            if looks <= _YIELDS:
                self._host.relax()
            else:
                self._sleep(nap_ns)
                nap_ns = min(2 * nap_ns, _LONG_NS)

    def linger(self) -> None:
        """For no time, for a moment, or for about as long as a processor is on its way somewhere."""
        if self.world.ending:
            raise Ended
        way = self._host.choose(3, "way")
        if way == 1:
            for _ in range(self._host.choose(_LINGER, "turns")):
                self._host.relax()
        elif way == 2:
            self._sleep(self._host.choose(_LINGER_NS, "time"))

    def choose(self, count: int) -> int:
        return self._host.choose(count, self.name)

    def _sleep(self, nap_ns: int) -> None:
        self._host.wait_event(self._queue, lambda: False, deadline_ns=self._host.now_ns() + nap_ns)


@dataclass(slots=True)
class World:
    """`kicks`: how many in all; `count`: how many vCPUs, at least."""

    host: ThreadHost
    engines: EngineFactory
    kicks: int
    count: int
    ending: bool = False
    lost: list[str] = field(default_factory=list)
    processors: list[Processor] = field(default_factory=list)
    kickers: list[Kicker] = field(default_factory=list)
    bodies: list[Callable[[], None]] = field(default_factory=list)
    """The processors' tasks."""
    _processing: list[Task] = field(default_factory=list)
    _kicking: list[Task] = field(default_factory=list)

    def build(self, kinds: Sequence[Kind], *, hyperv: bool = False) -> Vm:
        """The VM with a vCPU for each of `kinds`. `hyperv`: guests may make hypercalls."""
        vm = Vm(self.host, self.engines, "vm")
        ram = RamBlock((len(kinds) + 1) * SIZE)
        write_tables(ram)
        vm.set_user_memory_region(MemoryRegion(0, 0, ram.size, ram))
        vm.port_bus.register(range(DEVICE, DEVICE + 1), lambda _port, _size: 0, lambda _port, _size, _value: None)
        for number, kind in enumerate(kinds):
            vcpu = vm.create_vcpu(number)
            leaves = for_vcpu(vm.get_supported_cpuid(), number, len(kinds))
            vcpu.set_cpuid2([*leaves, *hv_cpuid_entries(HvFeatures())] if hyperv else leaves)
            self.processors.append(Processor(vcpu, Guest(vcpu, number, kind, ram)))
        if hyperv:
            vm.hv.set_guest_os_id(1)
        return vm

    def add_kickers(self, teams: Sequence[Sequence[tuple[str, Callable[[Kicker], None]]]], per_round: int = 1) -> None:
        """Teams of kickers: the name and the round of each. `per_round`: how many kicks each round of one makes."""
        members = sum(map(len, teams))
        rounds = -(-self.kicks // (members * per_round))
        for team in teams:
            made = [Kicker(self, name, rounds, round_) for name, round_ in team]
            for each in made:
                each.team = made
            self.kickers += made

    def lose(self, waiting: Waiting, remark: str) -> None:
        """A kick is lost: note it, and end the scenario."""
        self.lost.append(f"{waiting.what} of {waiting.found}: {remark}")
        self.ending = True

    def spawn(self) -> None:
        """Start all tasks."""
        for number, body in enumerate(self.bodies):
            self._processing.append(self.host.spawn(body, f"processor{number}"))
        for kicker in self.kickers:
            self._kicking.append(self.host.spawn(kicker.body, kicker.name))

    def kicked(self) -> bool:
        """Whether every kicker is through."""
        return all(task.done() for task in self._kicking)

    def done(self) -> bool:
        """Whether no task is left."""
        return self.kicked() and all(task.done() for task in self._processing)

    def watch(self, patience_ns: int) -> None:
        """Kick again where a kick has not been answered for so long; twice as long is the end."""
        now = self.host.now_ns()
        for kicker in self.kickers:
            waiting = kicker.waiting
            if waiting is None:
                continue
            waited = now - waiting.since_ns
            if not waiting.again and waited > patience_ns:
                waiting.again = True
                for processor in waiting.processors:
                    processor.kick_again()
            elif waited > 2 * patience_ns and not self.ending:
                self.lose(waiting, "a second kick was in vain, too")

    def end(self) -> None:
        """Make every task end, or try: to be repeated until all have. Never blocks."""
        self.ending = True
        for processor in self.processors:
            processor.vcpu.signal()
            processor.kick_again()
