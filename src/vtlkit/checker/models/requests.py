"""vCPU requests with mode and IPI: kvm_make_request, kvm_vcpu_kick and vcpu_enter_guest, as vcpu-requests.rst has them.

Left out: sleeping vCPUs (see `block`), migration between processors, KVM_REQUEST_WAIT. What a request is about is a
variable that its maker stores before, with no order of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vtlkit.checker.kernel import Kernel, Processor, Variable
from vtlkit.host.api import Host

OUTSIDE, IN_GUEST, EXITING = "outside", "in guest", "exiting"

TESTED_EARLY = "tested-early"
"""The vCPU looks for requests before it stores its mode."""
NO_ENTRY_BARRIER = "no-entry-barrier"
"""No full barrier between the store of the mode and the look for requests."""
NO_KICK_BARRIER = "no-kick-barrier"
"""kvm_vcpu_exiting_guest_mode without smp_mb__before_atomic: a cmpxchg that fails orders nothing."""
NO_REQUEST_BARRIER = "no-request-barrier"
"""__kvm_make_request without smp_wmb."""
NO_CHECK_BARRIER = "no-check-barrier"
"""kvm_check_request without smp_mb__after_atomic."""
KICK_FIRST = "kick-first"
"""The kick comes before the request."""


@dataclass(frozen=True)
class _Vcpu:
    """What a vCPU and its requesters share."""

    kernel: Kernel
    mode: Variable
    requests: Variable
    processor: Processor
    data: tuple[Variable, ...]
    changed: str


def requests(host: Host, requesters: int, changed: str = "") -> None:
    """A vCPU whose guest never exits by itself answers one request of each requester."""
    kernel = Kernel(host)
    data = tuple([kernel.word(f"data{number}") for number in range(requesters)])
    words = kernel.word("mode", OUTSIDE), kernel.word("requests"), kernel.processor("cpu")
    vcpu = _Vcpu(kernel, *words, data, changed)
    host.spawn(partial(_run, vcpu), "vcpu")
    for number in range(requesters):
        host.spawn(partial(_request, vcpu, number), f"requester {number}")


def _run(vcpu: _Vcpu) -> None:
    kernel, mode = vcpu.kernel, vcpu.mode
    left = len(vcpu.data)
    while left:
        pending: object = 0
        if vcpu.changed == TESTED_EARLY:
            pending = vcpu.requests.read_once()
        mode.write_once(IN_GUEST)
        if vcpu.changed != NO_ENTRY_BARRIER:
            kernel.smp_mb()
        if vcpu.changed != TESTED_EARLY:
            pending = vcpu.requests.read_once()
        now = mode.read_once()
        if pending or now == EXITING:
            mode.write_once(OUTSIDE)
            kernel.smp_wmb()
            done = _answer(vcpu)
            left -= done
            continue
        vcpu.processor.run_guest(may_sleep=False)
        mode.write_once(OUTSIDE)
        kernel.smp_wmb()


def _answer(vcpu: _Vcpu) -> int:
    """kvm_check_request for each request; how many there were."""
    data, requests, count = vcpu.data, vcpu.requests, len(vcpu.data)
    done = 0
    for number in range(count):
        made = requests.test_bit(number)
        if made:
            requests.clear_bit(number)
            if vcpu.changed != NO_CHECK_BARRIER:
                vcpu.kernel.smp_mb_after_atomic()
            about = data[number]
            seen = about.read_once()
            assert seen == 1, "a request is answered without what it is about"
            done += 1
    return done


def _request(vcpu: _Vcpu, number: int) -> None:
    data = vcpu.data[number]
    data.write_once(1)
    if vcpu.changed == KICK_FIRST:
        _kick(vcpu)
    if vcpu.changed != NO_REQUEST_BARRIER:
        vcpu.kernel.smp_wmb()
    vcpu.requests.set_bit(number)
    if vcpu.changed != KICK_FIRST:
        _kick(vcpu)


def _kick(vcpu: _Vcpu) -> None:
    if vcpu.changed != NO_KICK_BARRIER:
        vcpu.kernel.smp_mb_before_atomic()
    mode = vcpu.mode.cmpxchg(IN_GUEST, EXITING)
    if mode == IN_GUEST:
        vcpu.processor.send_ipi()
