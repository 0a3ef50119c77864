"""Flushes against the inhibit of their target's TLB, in both designs (docs/design/tlb-flush-inhibit.md)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from vtlkit.checker.protocols.rig import CheckedRig
from vtlkit.checker.protocols.worlds.common import broken, halt_for_ever, settle
from vtlkit.checker.scenarios.rig import DONE, Script, to_long_mode
from vtlkit.engine.scripted import Guest, ops
from vtlkit.host.api import Host
from vtlkit.hvdef.hypercalls import HvCallCode
from vtlkit.kvm.cpuid import for_vcpu
from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
from vtlkit.kvm.hyperv.flush_inhibit.posted import Posted, PostedDesign
from vtlkit.kvm.hyperv.flush_inhibit.waiting_on import WaitingOn, first_inhibited
from vtlkit.kvm.hyperv.parameters import Hypercall
from vtlkit.kvm.hyperv.vcpu import HvVcpu
from vtlkit.kvm.hyperv.vp_set import ALL_VPS
from vtlkit.kvm.kvm_run import Io
from vtlkit.kvm.requests import Req
from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries
from vtlkit.kvm.vcpu import Vcpu
from vtlkit.kvm.vm import Vm

_INPUT: Final = 0x8000
_HYPERV: Final = hv_cpuid_entries(HvFeatures())

Spoil = Callable[["FlushWorld"], object]


class Look(enum.Enum):
    """What the inhibitor does while it inhibits."""

    NONE = 0
    """Nothing: the TLB is inhibited when the tasks begin, and it is about the end of that alone."""
    TRANSLATION = 1
    """Translates: none of the entries that it has found may have been flushed."""
    REQUEST = 2
    """Waits for requests: no call of a single flusher completes whose request came later."""


class FlushWorld:
    """So many processors flush another one's TLB after a change of their page table entry. An inhibitor translates by
    all entries while it holds that TLB: none of what it has found may have been flushed."""

    def __init__(self, host: Host, design: FlushInhibitDesign, flushers: int) -> None:
        programs: list[Guest] = [partial(self._flusher, number) for number in range(flushers)]

        def configure(vm: Vm) -> None:
            vm.hv.set_flush_inhibit_design(design)

        self.rig = CheckedRig(host, [*programs, halt_for_ever], interrupts=False, prepare=configure)
        self.entries = [host.cell(0, f"entry {number}") for number in range(flushers)]
        self.flushed = [host.cell(0, f"flushed {number}") for number in range(flushers)]
        vm = self.rig.vm
        entries = [*for_vcpu(vm.get_supported_cpuid(), 0, 1), *_HYPERV]
        for vcpu in self.rig.vcpus:
            vcpu.set_cpuid2(entries)
            to_long_mode(vcpu)
            vcpu.engine.regs.rcx, vcpu.engine.regs.rdx = HvCallCode.HvCallFlushVirtualAddressSpace, _INPUT
            settle(vcpu)
        vm.hv.set_guest_os_id(1)
        self.flushers: Sequence[Vcpu] = self.rig.vcpus[:flushers]
        self.target = self.rig.vcpus[flushers]
        vm.memory.write(_INPUT, struct.pack("<QQQ", 0, 0, 1 << flushers))

    def _flusher(self, number: int, _engine: object) -> Script:
        yield ops.Host(partial(self.entries[number].store, 1))
        assert (yield ops.Vmmcall()) == 0
        yield ops.Host(partial(self.flushed[number].store, 1))
        yield ops.Out(DONE, 1, 0)

    def translate(self) -> None:
        """Of the inhibitor."""
        translated = [entry.load() for entry in self.entries]
        flushed = [word.load_acquire() for word in self.flushed]
        for used, gone in zip(translated, flushed, strict=True):
            assert used >= gone, "what was found while the target is inhibited has been flushed"

    def wait_for_a_request(self) -> None:
        """Of the inhibitor."""
        requests = self.target.requests
        requests.clear(Req.TLB_FLUSH)
        before = [word.load() for word in self.flushed]
        requested = requests.test(Req.TLB_FLUSH)
        assert not requested or [word.load() for word in self.flushed] == before, (
            "a flush completes on an inhibited TLB"
        )

    def spawn(self, others: Callable[[], None], name: str) -> None:
        """The flushers, and who interferes."""
        for number, vcpu in enumerate(self.flushers):
            self.rig.spawn(partial(self._run, vcpu), f"flusher {number}")
        self.rig.spawn(others, name)

    def _run(self, vcpu: Vcpu) -> None:
        exit_ = vcpu.run()
        assert isinstance(exit_, Io), exit_
        assert vcpu.hv.flush_inhibit.waits_for() is None


def nothing(_world: FlushWorld) -> None:
    """The code that ships."""


def inhibited(
    host: Host, *, design: FlushInhibitDesign, inhibits: int, flushers: int, look: Look, spoil: Spoil = nothing
) -> None:
    """An inhibitor sets and clears so often."""
    world = FlushWorld(host, design, flushers)
    target = world.target
    if look is Look.NONE:
        target.hyperv_set_tlb_flush_inhibit(True)
    spoil(world)

    def inhibitor() -> None:
        for turn in range(inhibits):
            if look is not Look.NONE or turn:
                target.hyperv_set_tlb_flush_inhibit(True)
            if look is Look.TRANSLATION:
                world.translate()
            elif look is Look.REQUEST:
                world.wait_for_a_request()
            target.hyperv_set_tlb_flush_inhibit(False)

    world.spawn(inhibitor, "inhibitor")


def destroyed(host: Host, *, design: FlushInhibitDesign, flushers: int, spoil: Spoil = nothing) -> None:
    """The inhibited vCPU is destroyed while others wait for it, or are about to."""
    world = FlushWorld(host, design, flushers)
    world.target.hyperv_set_tlb_flush_inhibit(True)
    spoil(world)
    world.spawn(world.target.close, "destroyer")


# --- known-bad ------------------------------------------------------------------------------------------------------


class LooksThenSaysSo(WaitingOn):
    """The inhibit is cleared between the look and the word: nobody is found waiting, and nobody wakes this vCPU."""

    __slots__ = ()

    def _suspend(self, call: Hypercall, target: HvVcpu) -> None:
        call.reissue = True
        if target.tlb_flush_inhibit.load():
            self.waiting_on.store(target)
            self._hv.vcpu.suspend()
        self.waiting_on.store(None)


class LooksThenRequests(WaitingOn):
    """The look at the inhibit comes before the requests, and none after: the posted order without its grace period."""

    __slots__ = ()

    def flush(self, call: Hypercall, targets: Sequence[HvVcpu]) -> bool:
        inhibited = first_inhibited(targets)
        if inhibited is None:
            for target in targets:
                target.vcpu.request_tlb_flush()
            return True
        self._suspend(call, inhibited)
        return False


class _ClearsAndWakesNobody(WaitingOn):
    """The inhibit is cleared, and nobody is told."""

    __slots__ = ()

    def set(self, inhibit: bool) -> None:
        self._hv.tlb_flush_inhibit.store(inhibit)
        self._hv.vcpu.host.smp_mb()


class KicksOnly(WaitingOn):
    """No request: the kick is lost on a vCPU that is about to sleep."""

    __slots__ = ()

    def set(self, inhibit: bool) -> None:
        self._hv.tlb_flush_inhibit.store(inhibit)
        self._hv.vcpu.host.smp_mb()
        for other in self._hv.hv_vm.vps(ALL_VPS):
            if not inhibit and other.flush_inhibit.waits_for() is self._hv:
                other.vcpu.kick()


class _NoBarrier(WaitingOn):
    """The inhibit is stored, and who waits is looked for, with nothing in between."""

    __slots__ = ()

    def set(self, inhibit: bool) -> None:
        self._hv.tlb_flush_inhibit.store(inhibit)
        for other in self._hv.hv_vm.vps(ALL_VPS):
            if not inhibit and other.flush_inhibit.waits_for() is self._hv:
                other.vcpu.make_request(Req.UNBLOCK)
                other.vcpu.kick()


class NoGracePeriod(PostedDesign):
    """What the words and their barriers do by themselves."""

    def grace_period(self) -> None:
        """Wait for nobody."""


class SuspendedFirst(Posted):
    """The two words in the other order, as they may be seen without the barrier between them."""

    __slots__ = ()

    def _say_suspended(self, vcpu_id: int) -> None:
        self._suspended.store(True)
        self._waiting_on.store(vcpu_id)


class WakesFirst(Posted):
    """The vCPU is woken before the words are taken back: it finds itself suspended still, and sleeps again."""

    __slots__ = ()

    def set(self, inhibit: bool) -> None:
        self._hv.tlb_flush_inhibit.store(inhibit)
        self._design.grace_period()
        for other in self._hv.hv_vm.vps(ALL_VPS):
            theirs = other.flush_inhibit
            if not inhibit and isinstance(theirs, Posted) and theirs.is_suspended_for(self._hv.vcpu.vcpu_id):
                other.vcpu.make_request(Req.EVENT)
                other.vcpu.kick()
                theirs.take_back()


def _each(kind: type) -> Spoil:
    def spoil(world: FlushWorld) -> None:
        for vcpu in world.rig.vcpus:
            broken(vcpu.hv.flush_inhibit, kind)

    return spoil


def _without_grace_period(world: FlushWorld) -> None:
    broken(world.rig.vm.hv.flush_inhibits, NoGracePeriod)


def _reversed_without_grace_period(world: FlushWorld) -> None:
    _without_grace_period(world)
    _each(SuspendedFirst)(world)


SPOILS: Final[Mapping[str, Spoil]] = {
    "": nothing,
    "look-first": _each(LooksThenSaysSo),
    "checked-before-requested": _each(LooksThenRequests),
    "no-wake": _each(_ClearsAndWakesNobody),
    "kick-only": _each(KicksOnly),
    "no-barrier": _each(_NoBarrier),
    "no-grace-period": _without_grace_period,
    "suspended-first": _each(SuspendedFirst),
    "suspended-first-no-grace-period": _reversed_without_grace_period,
    "wake-first": _each(WakesFirst),
}
