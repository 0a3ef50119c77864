"""The posted Hyper-V series: "Implement Hyper-V's vCPU suspended state" with KVM_HYPERV_SET_TLB_FLUSH_INHIBIT.

An inhibitor sets and clears the inhibit of its own vCPU; between the two it translates an address. A flusher changes
its page table entry and flushes: not while the inhibit is set, else it is suspended (`suspended`, `waiting_on`) and
blocks. Modelled: the two words, KVM's SRCU around `vcpu_run` but for the guest and blocking, kvm_vcpu_block with
rcuwait, the request. Left out: everything else that wakes or kicks a vCPU, the flush itself (full barriers are in it),
IPIs (a suspended vCPU is not in the guest), and the read section inside kvm_vcpu_check_block: nothing is proved by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from vtlkit.checker.compiler import Load, Site, Store
from vtlkit.checker.kernel import Kernel, Sleeper, Srcu, Variable
from vtlkit.host.api import Host

NOBODY: Final = 0xFFFFFFFF
"""`waiting_on`: -1 in 32 bits."""
EVENT, UNBLOCK = 0, 1
_HIGH: Final = 0xFFFF0000
EARLIER, LATER, FUSED, TORN = "moved up", "moved down", "fused", "torn"

SITES: Final = (
    Site("run.suspended", "READ_ONCE(suspended) in kvm_vcpu_running, for the run loop"),
    Site("block.suspended", "READ_ONCE(suspended) in kvm_vcpu_running, for kvm_vcpu_check_block"),
    Site("complete.suspended", "READ_ONCE(suspended) in kvm_hv_hypercall_complete", (FUSED,)),
    Site("flush.inhibit", "READ_ONCE(tlb_flush_inhibit) in the flush hypercall"),
    Site("scan.suspended", "READ_ONCE(suspended) in kvm_hv_vcpu_unsuspend_tlb_flush", (LATER,)),
    Site("scan.waiting_on", "READ_ONCE(waiting_on) in kvm_hv_vcpu_unsuspend_tlb_flush", (EARLIER,)),
    Site("suspend.waiting_on", "WRITE_ONCE(waiting_on, id) where a flusher is suspended", (LATER, TORN)),
    Site("suspend.suspended", "WRITE_ONCE(suspended, true) where a flusher is suspended", (EARLIER,)),
    Site("release.waiting_on", "WRITE_ONCE(waiting_on, -1) where it is let go", (LATER, TORN)),
    Site("release.suspended", "WRITE_ONCE(suspended, false) where it is let go", (EARLIER,)),
    Site("set.inhibit", "WRITE_ONCE(tlb_flush_inhibit, true)"),
    Site("clear.inhibit", "WRITE_ONCE(tlb_flush_inhibit, false)"),
)

BARRIERS: Final = {
    "set-srcu": "synchronize_srcu after the inhibit is set",
    "clear-srcu": "synchronize_srcu between clearing the inhibit and the look for suspended vCPUs",
    "suspend-wmb": "smp_wmb between the two stores that suspend",
    "release-wmb": "smp_wmb between the two stores that let go",
    "request-wmb": "smp_wmb in __kvm_make_request",
    "wake-mb": "smp_mb (B) in rcuwait_wake_up",
    "sleep-mb": "smp_mb in set_current_state",
    "wake": "the wake-up itself",
}


@dataclass(frozen=True)
class Change:
    """What is not as posted. `compiled`: sites without their mark, see `compiler`."""

    left_out: frozenset[str] = frozenset()
    """Of BARRIERS."""
    merged: bool = False
    """One word: `waiting_on`, and NOBODY says that the vCPU is not suspended."""
    suspended_first: bool = False
    """`suspended` is stored before `waiting_on`."""
    request: int = EVENT
    compiled: Mapping[str, str] = field(default_factory=dict)

    def has(self, barrier: str) -> bool:
        """Whether it is there."""
        return barrier not in self.left_out

    def load(self, variable: Variable, site: str) -> Load:
        """A load at a site."""
        return Load(variable, self.compiled.get(site))

    def store(self, variable: Variable, value: int, site: str, torn: int | None = None) -> Store:
        """A store at a site."""
        return Store(variable, value, self.compiled.get(site), torn)


AS_POSTED: Final = Change()


@dataclass(frozen=True)
class _Flusher:
    """What there is of a flushing vCPU."""

    suspended: Variable
    waiting_on: Variable
    requests: Variable
    sleeper: Sleeper
    entry: Variable
    """Its guest's page table entry: 1 is the new one."""
    flushed: Variable
    """Whether its guest's call is over."""


@dataclass(frozen=True)
class _Vm:
    kernel: Kernel
    srcu: Srcu
    inhibits: tuple[Variable, ...]
    flushers: tuple[_Flusher, ...]
    cycles: int
    change: Change


def posted(host: Host, flushers: int, inhibitors: int, cycles: int, change: Change = AS_POSTED) -> None:
    """Each flusher flushes the TLBs of all inhibitors' vCPUs; each inhibitor sets and clears `cycles` times."""
    kernel = Kernel(host)
    inhibits = tuple([kernel.word(f"inhibit{number}") for number in range(inhibitors)])
    vcpus = tuple([_flusher_words(kernel, number, change) for number in range(flushers)])
    vm = _Vm(kernel, kernel.srcu("srcu"), inhibits, vcpus, cycles, change)
    for number in range(inhibitors):
        host.spawn(partial(_inhibitor, vm, number), f"inhibitor {number}" if inhibitors > 1 else "inhibitor")
    for number in range(flushers):
        host.spawn(partial(_flusher, vm, vcpus[number]), f"flusher {number}" if flushers > 1 else "flusher")


def _flusher_words(kernel: Kernel, number: int, change: Change) -> _Flusher:
    waiting_on = kernel.word(f"waiting_on{number}", NOBODY)
    suspended = waiting_on if change.merged else kernel.word(f"suspended{number}")
    sleeper = kernel.sleeper(f"flusher{number}")
    words = [kernel.word(f"{name}{number}") for name in ("requests", "entry", "flushed")]
    return _Flusher(suspended, waiting_on, words[0], sleeper, words[1], words[2])


# --- the flusher's task -----------------------------------------------------------------------------------------------


def _flusher(vm: _Vm, me: _Flusher) -> None:
    me.entry.write_once(1)
    index = vm.srcu.read_lock()
    done = False
    while not done:
        suspended = _is_suspended(vm, me, "run.suspended")
        if suspended:
            vm.srcu.read_unlock(index)
            _block(vm, me)
            index = vm.srcu.read_lock()
        else:
            _check_request(vm, me, EVENT)
            done = _hypercall(vm, me)
        if vm.change.request == UNBLOCK:
            # kvm_clear_request, at the end of each round of vcpu_run.
            me.requests.clear_bit(UNBLOCK)
    vm.srcu.read_unlock(index)


def _is_suspended(vm: _Vm, me: _Flusher, site: str) -> bool:
    load = vm.change.load(me.suspended, site)
    value = load.value()
    return value != NOBODY if vm.change.merged else bool(value)


def _block(vm: _Vm, me: _Flusher) -> None:
    """kvm_vcpu_block."""
    me.sleeper.prepare()
    while True:
        me.sleeper.set_current_state(barrier=vm.change.has("sleep-mb"))
        suspended = _is_suspended(vm, me, "block.suspended")
        if not suspended:
            break
        asked = _check_request(vm, me, UNBLOCK)
        if asked:
            break
        me.sleeper.schedule()
    me.sleeper.finish()


def _check_request(vm: _Vm, me: _Flusher, request: int) -> bool:
    """kvm_check_request."""
    if vm.change.request != request:
        return False
    made = me.requests.test_bit(request)
    if made:
        me.requests.clear_bit(request)
        vm.kernel.smp_mb_after_atomic()
    return made


def _hypercall(vm: _Vm, me: _Flusher) -> bool:
    """The flush hypercall, in the kernel; whether it is completed."""
    inhibits, count = vm.inhibits, len(vm.inhibits)
    for number in range(count):
        load = vm.change.load(inhibits[number], "flush.inhibit")
        inhibited = load.value()
        if inhibited:
            completed = _suspend(vm, me, number)
            assert not completed, "the guest goes on behind a flush that was not made"
            return False
    # The requests to flush, and the wait for those that are in the guest.
    vm.kernel.smp_mb()
    me.flushed.write_once(1)
    return True


def _suspend(vm: _Vm, me: _Flusher, number: int) -> bool:
    change = vm.change
    waiting_on = change.store(me.waiting_on, number, "suspend.waiting_on", torn=_HIGH | number)
    if change.merged:
        waiting_on.here()
    else:
        suspended = change.store(me.suspended, 1, "suspend.suspended")
        _pair(vm, waiting_on, suspended, "suspend-wmb")
    load = change.load(me.suspended, "complete.suspended")
    load.fused(FUSED, number if change.merged else 1)
    still = load.value()
    return still == NOBODY if change.merged else not still


def _pair(vm: _Vm, waiting_on: Store, suspended: Store, barrier: str) -> None:
    """Two stores in this order, with a barrier between them, which the compiler does not move them over."""
    if vm.change.suspended_first and barrier == "suspend-wmb":
        suspended.here()
        vm.kernel.smp_wmb()
        waiting_on.here()
        return
    if vm.change.has(barrier):
        waiting_on.here()
        vm.kernel.smp_wmb()
        suspended.here()
        return
    suspended.at(EARLIER)
    waiting_on.here(LATER)
    suspended.here()
    waiting_on.at(LATER)


# --- the inhibitor's task ---------------------------------------------------------------------------------------------


def _inhibitor(vm: _Vm, number: int) -> None:
    cycles = vm.cycles
    for _ in range(cycles):
        _cycle(vm, number)


def _cycle(vm: _Vm, number: int) -> None:
    change, inhibit, flushers, count = vm.change, vm.inhibits[number], vm.flushers, len(vm.flushers)
    on = change.store(inhibit, 1, "set.inhibit")
    on.here()
    if change.has("set-srcu"):
        vm.srcu.synchronize()
    for flusher in range(count):
        _translate(vm, flushers[flusher])
    off = change.store(inhibit, 0, "clear.inhibit")
    off.here()
    if change.has("clear-srcu"):
        vm.srcu.synchronize()
    freed = 0
    for scanned in range(count):
        took = _release(vm, flushers[scanned], number)
        freed |= took << scanned
    for woken in range(count):
        if freed >> woken & 1:
            _wake(vm, flushers[woken])


def _translate(vm: _Vm, flusher: _Flusher) -> None:
    """With the TLB inhibited: walk the page tables, and use what was found."""
    before = flusher.flushed.read_once()
    used = flusher.entry.read_once()
    vm.kernel.smp_mb()
    after = flusher.flushed.read_once()
    assert used or not after, "a flush was completed that the translation in use has not seen"
    assert before == after, "a flush was completed while the inhibit was set"


def _release(vm: _Vm, flusher: _Flusher, number: int) -> int:
    """kvm_hv_vcpu_unsuspend_tlb_flush, of one vCPU; 1 if it waited for this inhibitor."""
    change = vm.change
    target = change.load(flusher.waiting_on, "scan.waiting_on")
    if not change.merged:
        looked = change.load(flusher.suspended, "scan.suspended")
        target.at(EARLIER)
        if change.compiled.get("scan.suspended") == LATER:
            # Both loads are made before either is looked at.
            waits_for = target.value()
            suspended = looked.value()
        else:
            suspended = looked.value()
            waits_for = target.value() if suspended else NOBODY
        if not suspended or waits_for != number:
            return 0
    else:
        waits_for = target.value()
        if waits_for != number:
            return 0
    waiting_on = change.store(flusher.waiting_on, NOBODY, "release.waiting_on", torn=_HIGH | number)
    if change.merged:
        waiting_on.here()
    else:
        suspended_off = change.store(flusher.suspended, 0, "release.suspended")
        _pair(vm, waiting_on, suspended_off, "release-wmb")
    return 1


def _wake(vm: _Vm, flusher: _Flusher) -> None:
    """kvm_make_vcpu_request."""
    if vm.change.has("request-wmb"):
        vm.kernel.smp_wmb()
    flusher.requests.set_bit(vm.change.request)
    if vm.change.has("wake"):
        flusher.sleeper.wake_up(barrier=vm.change.has("wake-mb"))
