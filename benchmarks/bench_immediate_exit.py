"""What a forced exit costs on each vendor, and what VMX's timer costs the exits that have nothing to do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vtlkit.cli.bench_cases.guest_loops import GuestLoop
from vtlkit.cli.measure import Case, Figure, seconds_per_operation
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.host.sim import Simulator
from vtlkit.kvm.memslots import MemoryRegion
from vtlkit.kvm.uapi import Kvm
from vtlkit.testing.guest_builder import RAM_SIZE, Guest

ENTRIES: Final = 20_000
CPUIDS: Final = 50_000
BUDGET: Final = 1_000


def seconds_per_forced_exit(vendor: str) -> float:
    """Of an entry that the vendor's `vcpu_run` is told to leave at once, on the embedded engine."""
    factory = UnicornFactory()
    try:
        vm = Kvm(Simulator(), factory, vendor=vendor).create_vm()
        vcpu = vm.create_vcpu(0)
        guest = Guest(vcpu.engine, map_ram=False)
        vm.set_user_memory_region(MemoryRegion(0, 0, RAM_SIZE, guest.ram))
        guest.long_mode()
        vcpu.map.sync()
        run = vcpu.vendor.vcpu_run
        run(vcpu, BUDGET, True)

        def entries() -> None:
            for _ in range(ENTRIES):
                run(vcpu, BUDGET, True)

        seconds = seconds_per_operation(entries, ENTRIES)
        assert vcpu.engine.instructions() == 0
    finally:
        factory.close()
    return seconds


def _cpuid(vendor: str) -> Callable[[], float]:
    return lambda: GuestLoop("cpuid", vendor=vendor).per_iteration(CPUIDS)


def cases() -> list[Case | Figure]:
    return [
        Case("forced-exit-vmx", lambda: seconds_per_forced_exit("vmx"), "svm", lambda: seconds_per_forced_exit("svm")),
        Case("cpuid-vmx", _cpuid("vmx"), "svm", _cpuid("svm")),
    ]
