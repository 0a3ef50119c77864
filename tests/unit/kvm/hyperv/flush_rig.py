"""Virtual machines whose guests, in 64-bit mode, make flush hypercalls: the hypervisor is real, the CPU is scripted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from tests.unit.kvm.core_rig import DONE, Machine, Script
from vtlkit.checker.scenarios.rig import to_long_mode
from vtlkit.engine.scripted import Guest, Handler, ScriptedEngine, ops
from vtlkit.host.api import RunnableHost
from vtlkit.hvdef.hypercalls import HvCallCode as Call
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.kvm_run import Intr, KvmRun
from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries
from vtlkit.kvm.vcpu import Vcpu

PROGRAMS = 0x4000
"""Where programs begin, 0x10 bytes per vCPU."""
INPUTS = 0x8000
"""A page of hypercall input per vCPU."""


class FlushMachine(Machine):
    """`guests`: what runs on each vCPU. One that ends exits to user space by writing to port `DONE`."""

    def __init__(
        self,
        guests: list[Callable[[FlushMachine, int], Script]],
        *,
        host: RunnableHost | None = None,
        handlers: Mapping[int, Handler] | None = None,
        interrupts: bool = False,
        design: FlushInhibitDesign = FlushInhibitDesign.WAITING_ON,
        extra: Mapping[int, Guest] | None = None,
    ) -> None:
        """`extra`: programs at other addresses."""
        programs: dict[int, Guest] = {
            PROGRAMS + 0x10 * number: self._program(number, body) for number, body in enumerate(guests)
        }
        programs |= extra or {}
        super().__init__(
            programs=programs,
            handlers=handlers,
            vcpus=len(guests),
            host=host,
            prepare=lambda vm: vm.hv.set_flush_inhibit_design(design),
        )
        for vcpu in self.vcpus:
            entries = for_vcpu(self.vm.get_supported_cpuid(), vcpu.vcpu_id, len(guests))
            vcpu.set_cpuid2([*entries, *hv_cpuid_entries(HvFeatures())])
            to_long_mode(vcpu, PROGRAMS + 0x10 * vcpu.vcpu_id, interrupts=interrupts)
            vcpu.start_runnable()
        self.vm.hv.set_guest_os_id(1)

    def _program(self, number: int, body: Callable[[FlushMachine, int], Script]) -> Guest:
        def begin(_engine: ScriptedEngine) -> Script:
            yield from body(self, number)
            yield ops.Out(DONE, 1, 0)

        return begin

    def flush(self, number: int, targets: int) -> Script:
        """HvCallFlushVirtualAddressSpace of a mask of processors, from vCPU `number`."""
        page = INPUTS + 0x1000 * number
        yield ops.Host(lambda: self.vm.memory.write(page, struct.pack("<QQQ", 0, 0, targets)))
        yield ops.Set(Call.HvCallFlushVirtualAddressSpace, "rcx")
        yield ops.Set(page, "rdx")
        assert (yield ops.Vmmcall()) == 0

    def until_done(self, vcpu: Vcpu) -> list[KvmRun]:
        """Run a vCPU until its guest ends; the exits before that."""
        exits: list[KvmRun] = []
        while True:
            exit_ = vcpu.run()
            if not isinstance(exit_, Intr):
                return exits
            exits.append(exit_)
