"""A flush against the inhibit of its target's TLB, in both designs (docs/design/tlb-flush-inhibit.md)."""

from __future__ import annotations

import struct
from functools import partial
from typing import Final

from vtlkit.checker.scenarios import Scenario
from vtlkit.checker.scenarios.rig import DONE, Rig, Script, to_long_mode
from vtlkit.engine.scripted import Guest, ops
from vtlkit.host.api import Cell, RunnableHost
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.kvm_run import Intr, Io
from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries
from vtlkit.kvm.vcpu import Vcpu

_INPUT: Final = 0x8000
_HYPERV: Final = hv_cpuid_entries(HvFeatures())
_FLUSHERS: Final = 2
_TARGET: Final = _FLUSHERS
_ROUNDS: Final = 2


class _World:
    """Two processors flush the third one's TLB after each change of their page table entry. An inhibitor translates by
    all entries while it holds the third one's TLB: none of what it has found may have been flushed."""

    def __init__(self, host: RunnableHost, design: FlushInhibitDesign) -> None:
        self.host = host
        programs: list[Guest] = [partial(self._flusher, number) for number in range(_FLUSHERS)]
        self.rig = Rig(
            host, [*programs, _idle], interrupts=False, prepare=lambda vm: vm.hv.set_flush_inhibit_design(design)
        )
        self.entries: list[Cell[int]] = [host.cell(0, f"entry{number}") for number in range(_FLUSHERS)]
        self.flushed: list[Cell[int]] = [host.cell(0, f"flushed{number}") for number in range(_FLUSHERS)]
        self.ended = host.cell(0, "ended")
        vm = self.rig.vm
        entries = [*for_vcpu(vm.get_supported_cpuid(), 0, 1), *_HYPERV]
        for vcpu in self.rig.vcpus:
            vcpu.set_cpuid2(entries)
            to_long_mode(vcpu)
        vm.hv.set_guest_os_id(1)
        vm.memory.write(_INPUT, struct.pack("<QQQ", 0, 0, 1 << _TARGET))
        self.target = self.rig.vcpus[_TARGET]

    def _flusher(self, number: int, _engine: object) -> Script:
        for version in range(1, _ROUNDS + 1):
            yield ops.Host(partial(self.entries[number].store, version))
            yield ops.Set(HvCallCode.HvCallFlushVirtualAddressSpace, "rcx")
            yield ops.Set(_INPUT, "rdx")
            assert (yield ops.Vmmcall()) == 0
            yield ops.Host(partial(self.flushed[number].store, version))
        yield ops.Out(DONE, 1, 0)

    def run(self, vcpu: Vcpu) -> None:
        """What user space does: signals end `run`, and it comes back."""
        while isinstance(exit_ := vcpu.run(), Intr):
            pass
        assert isinstance(exit_, Io), exit_
        self.ended.fetch_add(1)

    def inhibitor(self) -> None:
        for _ in range(_ROUNDS):
            self.target.hyperv_set_tlb_flush_inhibit(True)
            translated = [entry.load() for entry in self.entries]
            self.rig.linger(20)
            flushed = [word.load() for word in self.flushed]
            for used, gone in zip(translated, flushed, strict=True):
                assert used >= gone, f"translated by {translated}, and {flushed} had been flushed"
            self.target.hyperv_set_tlb_flush_inhibit(False)
            self.rig.linger(20)

    def signaller(self) -> None:
        for vcpu in self.rig.vcpus[:_FLUSHERS]:
            self.rig.linger(40)
            vcpu.signal()


def _idle(_engine: object) -> Script:
    yield ops.Hlt()


def _flushes(design: FlushInhibitDesign, host: RunnableHost) -> None:
    """Two flushers, an inhibitor, a sender of signals."""
    world = _World(host, design)
    flushers = world.rig.vcpus[:_FLUSHERS]
    world.rig.run(*(partial(world.run, vcpu) for vcpu in flushers), world.inhibitor, world.signaller)
    assert world.ended.load() == _FLUSHERS
    assert all(vcpu.hv.flush_inhibit.waits_for() is None for vcpu in flushers)


def _destroyed(host: RunnableHost) -> None:
    """The inhibited vCPU is destroyed while others wait for it, or are about to."""
    design = tuple(FlushInhibitDesign)[host.choose(len(FlushInhibitDesign), "design")]
    world = _World(host, design)

    def close() -> None:
        world.target.hyperv_set_tlb_flush_inhibit(True)
        world.rig.linger(60)
        world.target.close()

    world.rig.run(*(partial(world.run, vcpu) for vcpu in world.rig.vcpus[:_FLUSHERS]), close)
    assert world.ended.load() == _FLUSHERS


_PROMISE: Final = "no flush completes on an inhibited TLB, and no flusher sleeps on one that is not"
SCENARIOS = (
    Scenario("tlb-flush-inhibit.ours", _PROMISE, partial(_flushes, FlushInhibitDesign.WAITING_ON)),
    Scenario("tlb-flush-inhibit.posted", _PROMISE, partial(_flushes, FlushInhibitDesign.POSTED)),
    Scenario("tlb-flush-inhibit.destroyed", "a target that is destroyed leaves no flusher asleep", _destroyed),
)
