"""A virtual machine whose guests are scripts, for scenarios: the hypervisor is real, the processors are scripted.

Every vCPU begins at `RESET` of its own program and is runnable from the start; its local APIC is enabled by software.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

from vtlkit.engine.api import EngineFactory, Event, RamBlock
from vtlkit.engine.scripted import Guest, Handler, ScriptedEngine, ops
from vtlkit.engine.scripted.core import Script as Script
from vtlkit.engine.scripted.ops import Op
from vtlkit.host.api import Host, RunnableHost
from vtlkit.kvm.caps import Cap
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm
from vtlkit.x86.apic import APIC_EOI, APIC_SPIV, APIC_SPIV_APIC_ENABLED
from vtlkit.x86.registers import RFLAGS_FIXED, RFLAGS_IF, Regs, Segment

RESET: Final = 0xFFFFFFF0
DONE: Final = 0x99
"""A port without a device: the script's way to user space."""
NMI: Final = 2
APIC_BASE: Final = 0xFEE00000
EOI: Final = ops.Write(APIC_BASE + APIC_EOI, 4, 0)
RAM_SIZE: Final = 16 << 12
_UNBOUNDED: Final = 1 << 60
_CR0, _CR4, _EFER = 0x80010033, 0x20, 0x500
_ROOT: Final = 0x2000


class Processor(ScriptedEngine):
    """Runs until something exits where the host gives no budgets."""

    def __init__(self, name: str, program: Guest, handlers: Mapping[int, Handler]) -> None:
        super().__init__(name, {RESET: program}, handlers)
        self.left = _UNBOUNDED


class Factory:
    """`EngineFactory`: one program a vCPU, in the order of their creation."""

    name = "scripted"

    def __init__(self, programs: Sequence[Guest], handlers: Mapping[int, Handler]) -> None:
        self._programs = iter(programs)
        self._handlers = handlers

    def create(self, vcpu_name: str) -> ScriptedEngine:
        return Processor(vcpu_name, next(self._programs), self._handlers)

    def counts_instructions(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to free."""


class Rig:
    """A VM with one vCPU a program and a few pages of RAM from 0. `interrupts`: RFLAGS.IF is set at the start.
    `create`: so many of the vCPUs are there at first, all unless given."""

    def __init__(
        self,
        host: RunnableHost,
        programs: Sequence[Guest],
        *,
        handlers: Mapping[int, Handler] | None = None,
        interrupts: bool = True,
        prepare: Callable[[Vm], None] = lambda _vm: None,
        create: int | None = None,
        vendor: str = "svm",
        nested: bool = False,
    ) -> None:
        """`prepare`: what has to be done to the VM before its first vCPU."""
        self.host: Host = host
        self._runnable = host
        self.vm = Vm(host, self._factory(programs, handlers or {}), "vm", vendor=vendor)
        self.vm.enable_cap(Cap.NESTED, int(nested))
        prepare(self.vm)
        self.ram = RamBlock(RAM_SIZE)
        self.vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.ram))
        self.vcpus: list[Vcpu] = []
        self._interrupts = interrupts
        self._pause = host.cell(0, "linger")
        self.hesitation = ops.Host(self._pause.load)
        """A guest instruction that touches a shared word, and so lets others go first."""
        for _ in range(len(programs) if create is None else create):
            self.create_vcpu()

    def _factory(self, programs: Sequence[Guest], handlers: Mapping[int, Handler]) -> EngineFactory:
        return Factory(programs, handlers)

    def create_vcpu(self) -> Vcpu:
        """The vCPU of the next program."""
        vcpu = self.vm.create_vcpu(len(self.vcpus))
        self.vcpus.append(vcpu)
        make_ready(vcpu, interrupts=self._interrupts)
        return vcpu

    def linger(self, steps: int) -> None:
        """Let the other tasks go ahead by up to so many accesses."""
        for _ in range(self.host.choose(steps, "linger")):
            self._pause.load()

    def senders(self, steps: int, *sends: Callable[[], object]) -> list[Callable[[], None]]:
        """A task for each that lingers for up to so many steps, then sends."""

        def sender(send: Callable[[], object]) -> None:
            self.linger(steps)
            send()

        return [partial(sender, send) for send in sends]

    def run(self, *functions: Callable[[], object]) -> None:
        """Run these as tasks until all are done."""
        run_tasks(self._runnable, *functions)


def make_ready(vcpu: Vcpu, *, interrupts: bool = True) -> None:
    """Runnable, its local APIC enabled by software. `interrupts`: RFLAGS.IF is set."""
    vcpu.start_runnable()
    vcpu.apic.mmio_write(APIC_SPIV, 4, APIC_SPIV_APIC_ENABLED | 0xFF)
    if interrupts:
        vcpu.engine.rflags |= RFLAGS_IF


def to_long_mode(vcpu: Vcpu, rip: int = RESET, *, interrupts: bool = False) -> None:
    """CPL 0 of 64-bit mode at `rip`, in which nothing is ever translated: programs are scripts. `interrupts`: RFLAGS.IF
    is set."""
    sregs = vcpu.get_sregs()
    sregs.cs = Segment(8, 0, 0xFFFFFFFF, 0xA9B)
    sregs.ss = Segment(0x10, 0, 0xFFFFFFFF, 0xC93)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0, _ROOT, _CR4, _EFER
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=rip, rflags=RFLAGS_FIXED | (RFLAGS_IF if interrupts else 0)))


def run_tasks(host: RunnableHost, *functions: Callable[[], object]) -> None:
    """Run these as tasks of the host until all are done."""
    for number, function in enumerate(functions):
        host.spawn(_task(function), f"task{number}")
    host.run()


def _task(function: Callable[[], object]) -> Callable[[], None]:
    def body() -> None:
        function()

    return body


def script(*instructions: Op) -> Guest:
    """A program of these instructions; then it halts for good."""

    def begin(_engine: object) -> Script:
        for instruction in instructions:  # noqa: UP028 - RAX is sent, which a tuple does not take
            yield instruction

    return begin


def recorder(log: list[int], *instructions: Op) -> Handler:
    """An interrupt handler that notes its vector as it is entered, does `instructions` and returns."""
    body = script(ops.Compute(1), *instructions)

    def handler(engine: object, event: Event) -> Script:
        log.append(event.vector)
        return body(engine)

    return handler


def halting(
    seen: list[int], vectors: Collection[int], enough: Callable[[], bool] = lambda: True
) -> tuple[Guest, dict[int, Handler]]:
    """A guest that halts whenever it can, and goes to user space when it has seen every one of these vectors and that
    is `enough`; and its handlers, which end in EOI, but for an NMI."""

    def program(_engine: object) -> Script:
        while True:
            yield ops.Hlt()

    def handler(_engine: object, event: Event) -> Script:
        seen.append(event.vector)
        return body(event.vector)

    def body(vector: int) -> Script:
        if vector != NMI:
            yield EOI
        if set(seen) == set(vectors) and enough():
            yield ops.Out(DONE, 1, 0)

    return program, dict.fromkeys(vectors, handler)
