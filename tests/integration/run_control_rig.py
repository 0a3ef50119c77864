"""A VM whose vCPUs run on real threads, and whose guests count: what tests of run control have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.engine.api import EngineFactory, RamBlock
from vtlkit.host.threads import ThreadHost
from vtlkit.kvm.uapi import Intr, Kvm, KvmRun, MemoryRegion, Vcpu
from vtlkit.testing.assembler import Assembler, Mem
from vtlkit.testing.guest_builder import CODE, FREE, RAM_SIZE, Guest
from vtlkit.x86.apic import APIC_EOI, APIC_SPIV, APIC_SPIV_APIC_ENABLED, DeliveryMode
from vtlkit.x86.msr import APIC_BASE_MSR, MSR_IA32_APICBASE, X2APIC_ENABLE

PATIENCE_NS: Final = 60_000_000_000
"""After which a test that does not end is given up: no promise on speed."""
COUNT: Final = FREE
"""What the guest counts, 8 bytes a processor."""
TAKEN: Final = FREE + 0x100
"""Interrupts that its handler has seen, 8 bytes a processor."""
STOP: Final = FREE + 0x1000
"""Not 0: guests that look here end."""
PAGE: Final = FREE + 0x10000
HANDLER: Final = CODE + 0x8000
VECTOR: Final = 0x61


class World:
    """A VM whose processors run `program`: RDI is where each counts, R15 where its handler does."""

    def __init__(self, engines: EngineFactory, program: Callable[[Assembler], None], cpus: int = 1) -> None:
        self.host = ThreadHost()
        self.vm = Kvm(self.host, engines).create_vm()
        self.vcpus = [self.vm.create_vcpu(number) for number in range(cpus)]
        self.ram = RamBlock(RAM_SIZE)
        self.vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, self.ram))
        self.ram.view[:] = Guest(self.vcpus[0].engine, map_ram=False).ram.view
        self.over = False
        for vcpu in self.vcpus:
            vcpu.set_cpuid2(self.vm.get_supported_cpuid())
            guest = Guest(vcpu.engine, self.ram, map_ram=False)
            guest.long_mode()
            guest.gate(VECTOR, HANDLER)
            guest.load(handler())
            code = guest.assembler()
            program(code)
            guest.load(code)
            regs = vcpu.engine.regs
            regs.rdi, regs.r15 = COUNT + 8 * vcpu.vcpu_id, TAKEN + 8 * vcpu.vcpu_id
            base = vcpu.get_msr(MSR_IA32_APICBASE)
            assert base is not None
            assert vcpu.set_msr(MSR_IA32_APICBASE, base | X2APIC_ENABLE)
            assert vcpu.set_msr(APIC_BASE_MSR + (APIC_SPIV >> 4), APIC_SPIV_APIC_ENABLED | 0xFF)
            vcpu.start_runnable()

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]

    def word(self, address: int) -> int:
        return self.ram.words(8)[address // 8]

    def counts(self) -> list[int]:
        return [self.word(COUNT + 8 * vcpu.vcpu_id) for vcpu in self.vcpus]

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.host.relax()

    def guests_go_on(self) -> None:
        """Every guest counts further."""
        before = self.counts()
        self.until(lambda: all(now > old for now, old in zip(self.counts(), before, strict=True)))

    def interrupt(self, vcpu: Vcpu) -> None:
        vcpu.apic.accept_irq(DeliveryMode.FIXED, VECTOR, 1, False)

    def run(self, *tasks: Callable[[], None]) -> None:
        """Each on a thread of its own, to its end."""
        left = list(range(len(tasks)))
        with self.host as host:
            for number, task in enumerate(tasks):
                host.spawn(self._counted(task, left, number), f"task{number}")
            host.run(host.now_ns() + PATIENCE_NS)
            hanging = list(left)
            self.finish()
        assert not hanging, f"tasks that hang: {hanging}"

    @staticmethod
    def _counted(task: Callable[[], None], left: list[int], number: int) -> Callable[[], None]:
        def body() -> None:
            task()
            left.remove(number)

        return body

    def finish(self) -> None:
        """Have every processor's task end."""
        self.over = True
        for vcpu in self.vcpus:
            vcpu.signal()

    def processor(
        self, vcpu: Vcpu, handle: Callable[[KvmRun], None] | None = None, on_intr: Callable[[], None] = lambda: None
    ) -> Callable[[], None]:
        """A task that runs it until `finish`; exits go to `handle`, or must not come."""

        def body() -> None:
            while not self.over:
                exit_ = vcpu.run()
                if isinstance(exit_, Intr):
                    on_intr()
                    vcpu.wait_until_resumed()
                else:
                    assert handle is not None, f"{vcpu.name}: {exit_}"
                    handle(exit_)

        return body

    def processors(self) -> list[Callable[[], None]]:
        return [self.processor(vcpu) for vcpu in self.vcpus]


def handler() -> Assembler:
    """Counts, and ends the interrupt by the x2APIC's EOI."""
    a = Assembler(64, HANDLER)
    for register in ("rax", "rcx", "rdx"):
        a.push(register)
    a.inc(Mem("r15", size=8))
    a.mov("ecx", APIC_BASE_MSR + (APIC_EOI >> 4))
    a.xor("eax", "eax")
    a.xor("edx", "edx")
    a.wrmsr()
    for register in ("rdx", "rcx", "rax"):
        a.pop(register)
    a.iretq()
    return a


def spins(a: Assembler) -> None:
    a.label("again")
    a.inc(Mem("rdi", size=8))
    a.jmp("again")


def spins_with_interrupts_on(a: Assembler) -> None:
    a.sti()
    spins(a)


def halts(a: Assembler) -> None:
    a.label("again")
    a.sti()
    a.hlt()
    a.cli()
    a.inc(Mem("rdi", size=8))
    a.jmp("again")
