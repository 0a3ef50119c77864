"""KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS as posted ("KVM: use signals to abort enter_guest/blocking
and retry"), and the two ways of clearing the request earlier that were proposed in answer.

Modelled: KVM_REQ_USERSPACE_KICK, mode and IPI, the semaphore that KVM_RUN reads and the kicker writes, user space that
calls KVM_RUN again and again, and changes the slots between kick and resume. Left out: blocked vCPUs (their check is in
`block`), other requests, vCPUs that come and go, two kickers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vtlkit.checker.kernel import Kernel, Processor, Variable
from vtlkit.host.api import Host, RwSem

OUTSIDE, IN_GUEST, EXITING = "outside", "in guest", "exiting"

STICKY, FIRST_EXIT, BEFORE_UNLOCK = "sticky", "first-exit", "before-unlock"
"""Who clears the request: the resume (as posted); the exit that it causes; the kicker, before up_write."""

TESTED_EARLY = "tested-early"
"""A vCPU looks for the request before it stores its mode."""
NO_ENTRY_BARRIER = "no-entry-barrier"
NO_KICK_BARRIER = "no-kick-barrier"
"""kvm_vcpu_exiting_guest_mode without smp_mb__before_atomic."""
NO_WAIT = "no-wait"
"""The kicker does not take the semaphore."""
NO_RESUME_BARRIER = "no-resume-barrier"
"""The change of slots is not ordered before the clearing of the request, by a grace period or otherwise."""


@dataclass(frozen=True)
class _Vcpu:
    mode: Variable
    kick: Variable
    processor: Processor


@dataclass(frozen=True)
class _Vm:
    kernel: Kernel
    semaphore: RwSem
    changing: Variable
    """User space changes the slots, in the belief that no vCPU runs."""
    vcpus: tuple[_Vcpu, ...]
    design: str
    changed: str
    promise: bool


def kick_all(
    host: Host, vcpus: int, kicks: int, design: str = STICKY, changed: str = "", *, promise: bool = True
) -> None:
    """`promise`: no guest runs between kick and resume; without it only that nobody waits for ever is asked for."""
    kernel = Kernel(host)
    made = [
        _Vcpu(kernel.word(f"mode{n}", OUTSIDE), kernel.word(f"kick{n}"), kernel.processor(f"cpu{n}"))
        for n in range(vcpus)
    ]
    vm = _Vm(kernel, kernel.rwsem("running"), kernel.word("changing"), tuple(made), design, changed, promise)
    for number in range(vcpus):
        host.spawn(partial(_run, vm, made[number]), f"vcpu {number}" if vcpus > 1 else "vcpu", daemon=True)
    host.spawn(partial(_kicker, vm, kicks), "kicker")


def _run(vm: _Vm, vcpu: _Vcpu) -> None:
    while True:
        vm.semaphore.down_read()
        _enter(vm, vcpu)
        vm.semaphore.up_read()


def _enter(vm: _Vm, vcpu: _Vcpu) -> None:
    """vcpu_run: until the request ends it."""
    while True:
        left: object = 0
        if vm.changed == TESTED_EARLY:
            left = vcpu.kick.read_once()
        vcpu.mode.write_once(IN_GUEST)
        if vm.changed != NO_ENTRY_BARRIER:
            vm.kernel.smp_mb()
        if vm.changed != TESTED_EARLY:
            left = vcpu.kick.read_once()
        if left:
            vcpu.mode.write_once(OUTSIDE)
            vm.kernel.smp_wmb()
            if vm.design == FIRST_EXIT:
                vcpu.kick.write_once(0)
            return
        mode = vcpu.mode.read_once()
        if mode != EXITING:
            if vm.promise:
                # Entering a guest orders what is before and behind it.
                vm.kernel.smp_mb()
                changing = vm.changing.read_once()
                assert not changing, "a guest runs while user space changes the slots"
            vcpu.processor.run_guest()
        vcpu.mode.write_once(OUTSIDE)
        vm.kernel.smp_wmb()


def _kicker(vm: _Vm, kicks: int) -> None:
    for _ in range(kicks):
        _kick(vm)
        vm.changing.write_once(1)
        vm.kernel.smp_mb()
        vm.changing.write_once(0)
        if vm.changed != NO_RESUME_BARRIER:
            # A change of slots ends with a grace period; the request's own clear_bit orders nothing.
            vm.kernel.smp_mb()
        if vm.design != BEFORE_UNLOCK:
            _clear(vm)


def _kick(vm: _Vm) -> None:
    vcpus, count = vm.vcpus, len(vm.vcpus)
    for number in range(count):
        _request(vm, vcpus[number])
    if vm.changed == NO_WAIT:
        return
    vm.semaphore.down_write()
    if vm.design == BEFORE_UNLOCK:
        _clear(vm)
    vm.semaphore.up_write()


def _request(vm: _Vm, vcpu: _Vcpu) -> None:
    """kvm_make_request, then the kick."""
    vm.kernel.smp_wmb()
    vcpu.kick.write_once(1)
    if vm.changed != NO_KICK_BARRIER:
        vm.kernel.smp_mb_before_atomic()
    mode = vcpu.mode.cmpxchg(IN_GUEST, EXITING)
    if mode == IN_GUEST:
        vcpu.processor.send_ipi()


def _clear(vm: _Vm) -> None:
    vcpus, count = vm.vcpus, len(vm.vcpus)
    for number in range(count):
        kick = vcpus[number].kick
        kick.write_once(0)
