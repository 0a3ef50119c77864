"""Virtual machines whose guests are scripts: the hypervisor is real, the processor is `engine.scripted`'s.

The bootstrap processor begins at `RESET`, one that a SIPI of vector v starts at v << 12. `Cpu` writes down what the
hypervisor asks of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from tests.unit.kvm.irqchip_rig import SPIV_ON, write
from vtlkit.checker.scenarios.rig import DONE as DONE
from vtlkit.checker.scenarios.rig import RAM_SIZE as RAM_SIZE
from vtlkit.checker.scenarios.rig import RESET as RESET
from vtlkit.checker.scenarios.rig import Script as Script
from vtlkit.checker.scenarios.rig import recorder as recorder
from vtlkit.checker.scenarios.rig import run_tasks
from vtlkit.checker.scenarios.rig import script as script
from vtlkit.engine.api import Event, Exit, RamBlock
from vtlkit.engine.scripted import Guest, Handler, ScriptedEngine
from vtlkit.host.api import Host, RunnableHost
from vtlkit.host.sim import Simulator
from vtlkit.kvm.caps import Cap
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm
from vtlkit.trace.sinks import Sink
from vtlkit.trace.tracer import Tracer
from vtlkit.x86.apic import APIC_SPIV

_UNBOUNDED = 1 << 60


class Cpu(ScriptedEngine):
    """A scripted engine that remembers what it was told."""

    def __init__(self, name: str, programs: Mapping[int, Guest], handlers: Mapping[int, Handler]) -> None:
        super().__init__(name, programs, handlers)
        self.windows: dict[str, bool] = {"interrupt": False, "nmi": False}
        self.injections: list[Event] = []
        self.flushes = 0
        self.kicks = 0
        self.entries: list[tuple[int | None, bool]] = []
        """(budget, force_immediate_exit) of each `run`."""
        self.on_run: Callable[[], None] | None = None
        self.on_exit: Callable[[Exit], None] | None = None
        """Called as `run` returns, when a kick still counts for it."""
        self.unbounded = False
        """On a host that gives no budgets: run until something exits."""

    def run(self, budget: int | None, *, force_immediate_exit: bool = False) -> Exit:
        self.entries.append((budget, force_immediate_exit))
        if self.on_run is not None:
            self.on_run()
        if self.unbounded:
            budget = _UNBOUNDED
        reason = super().run(budget, force_immediate_exit=force_immediate_exit)
        if self.on_exit is not None:
            self.on_exit(reason)
        # No more than the contract promises: a kick lasts until one `run` has returned, whatever for.
        self._kicked = False
        return reason

    def request_interrupt_window(self, wanted: bool) -> None:
        self.windows["interrupt"] = wanted
        super().request_interrupt_window(wanted)

    def request_nmi_window(self, wanted: bool) -> None:
        self.windows["nmi"] = wanted
        super().request_nmi_window(wanted)

    def inject(self, event: Event) -> None:
        super().inject(event)
        self.injections.append(event)

    def flush_tlb(self) -> None:
        self.flushes += 1

    def kick(self) -> None:
        self.kicks += 1
        super().kick()


class Cpus:
    """`EngineFactory`."""

    name = "scripted"

    def __init__(self, programs: Mapping[int, Guest], handlers: Mapping[int, Handler]) -> None:
        self._programs = programs
        self._handlers = handlers

    def create(self, vcpu_name: str) -> Cpu:
        return Cpu(vcpu_name, self._programs, self._handlers)

    def counts_instructions(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to free."""


class Machine:
    """A VM of 16 pages of RAM with interrupt controllers; the APICs of its vCPUs are software-enabled."""

    def __init__(
        self,
        program: Guest | None = None,
        *,
        programs: Mapping[int, Guest] | None = None,
        handlers: Mapping[int, Handler] | None = None,
        vcpus: int = 1,
        host: RunnableHost | None = None,
        cpuid: bool = True,
        prepare: Callable[[Vm], None] = lambda _vm: None,
        vendor: str | None = None,
        nested: bool = False,
        sink: Sink | None = None,
    ) -> None:
        """`prepare`: what has to be done to the VM before its first vCPU."""
        self.host: RunnableHost = host if host is not None else Simulator()
        begin = dict(programs or {})
        begin.setdefault(RESET, program or script())
        self.tracer = None if sink is None else Tracer(self.host.now_ns, self.host.context, sink)
        chosen = {} if vendor is None else {"vendor": vendor}
        self.vm = Vm(cast(Host, self.host), Cpus(begin, handlers or {}), "vm", **chosen, trace=self.tracer)
        self.vm.enable_cap(Cap.NESTED, int(nested))
        prepare(self.vm)
        self.vm.create_irqchip()
        self.ram = RamBlock(RAM_SIZE)
        self.vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.ram))
        self.vcpus = [self.vm.create_vcpu(number) for number in range(vcpus)]
        for vcpu in self.vcpus:
            if cpuid:
                vcpu.set_cpuid2(for_vcpu(self.vm.get_supported_cpuid(), vcpu.vcpu_id, vcpus))
            write(vcpu.apic, APIC_SPIV, SPIV_ON)
            engine_of(vcpu).unbounded = not self.host.deterministic
        self.vcpu: Vcpu = self.vcpus[0]
        self.cpu = engine_of(self.vcpu)

    def run(self, *functions: Callable[[], object]) -> None:
        """Run these as tasks, all until they are done."""
        run_tasks(self.host, *functions)


def engine_of(vcpu: Vcpu) -> Cpu:
    return cast(Cpu, vcpu.engine)
