"""Questions of a review, asked of the code that ships: who clears a kick, and which request ends a suspension."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vtlkit.checker.protocols import RIGHT, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.protocols.kernel import with_variants
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.checker.program import Program
    from vtlkit.host.api import Host

_INPUT: Final = 0x8000
_ASSERTION, _DEADLOCK, _LOST = ProblemKind.ASSERTION, ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP


def _built(build: Callable[[Host], None]) -> Callable[[str, Sizes], Program]:
    def program(model: str, _sizes: Sizes) -> Program:
        from vtlkit.checker.protocols.rig import hosted

        return hosted(build, model, rounds=3)

    return program


# --- kick all ---------------------------------------------------------------------------------------------------------


def _kick(host: Host, design: str = "sticky", *, promise: bool = True, as_proposed: bool = False) -> None:
    """One vCPU whose guest never exits by itself, run again and again; user space kicks it, changes slots, resumes."""
    from vtlkit.checker.protocols.rig import CheckedRig, run_until_kicked
    from vtlkit.engine.scripted import ops
    from vtlkit.kvm.kick_all import KickDesign

    changing = host.cell(False, "changing")

    def look() -> int:
        # To enter a guest orders what is before and behind it.
        host.smp_mb()
        assert not changing.load(), "a guest runs while user space changes the slots"
        return 0

    def guest(engine: Any) -> Iterator[ops.Op]:
        while True:
            if promise:
                yield ops.Host(look)
            yield run_until_kicked(engine)

    rig = CheckedRig(host, [guest], prepare=lambda vm: vm.set_kick_design(KickDesign(design)))  # type: ignore[list-item]
    if as_proposed:
        rig.vm.kicks._kicker_waits = lambda: False  # type: ignore[method-assign]

    def run() -> None:
        for _ in range(2):
            rig.vcpus[0].run()

    def kick() -> None:
        rig.vm.kick_all_running_vcpus()
        changing.store(True)
        # A change of slots ends with a barrier of its own; the resume has none.
        host.smp_mb()
        changing.store(False)
        host.smp_mb()
        rig.vm.resume_all_kicked_vcpus()

    rig.spawn(run, "vcpu", daemon=True)
    rig.spawn(kick, "kicker")


def _kick_variants() -> Iterator[KnownBad]:
    for name, summary, expect, options in (
        (
            "first-exit",
            "the first exit clears the request",
            in_steps(_ASSERTION, 29, 31, 36),
            {"design": "first-exit"},
        ),
        (
            "first-exit-return",
            "the same; asked is only that nobody waits for ever",
            RIGHT,
            {"design": "first-exit", "promise": False},
        ),
        (
            "first-exit-as-proposed",
            "the same, and a run that begins while a kicker waits is not refused",
            in_steps(_DEADLOCK, 19, 20, 24),
            {"design": "first-exit", "promise": False, "as_proposed": True},
        ),
        (
            "unlock",
            "the kicker clears the requests before it lets go of the semaphore",
            in_steps(_ASSERTION, 19, 21, 25),
            {"design": "unlock"},
        ),
        (
            "unlock-return",
            "the same; asked is only that nobody waits for ever",
            RIGHT,
            {"design": "unlock", "promise": False},
        ),
    ):
        yield KnownBad(name, summary, _built(partial(_kick, **options)), expect)


_KICK = with_variants(
    Protocol("review.kick", "a kick of all vCPUs returns, and no guest runs until the resume", _built(_kick)),
    _kick_variants(),
)


# --- the request that ends a suspension -------------------------------------------------------------------------------


def _release(host: Host, changed: str = "") -> None:
    """The posted design as it ships. A TLB is inhibited; one vCPU flushes it, and the inhibit is cleared."""
    from vtlkit.checker.protocols.rig import CheckedRig
    from vtlkit.checker.scenarios.rig import DONE, to_long_mode
    from vtlkit.engine.scripted import ops
    from vtlkit.hvdef.hypercalls import HvCallCode
    from vtlkit.kvm.cpuid import for_vcpu
    from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign
    from vtlkit.kvm.kvm_run import Io
    from vtlkit.kvm.uapi import HvFeatures, hv_cpuid_entries

    def flusher(_engine: Any) -> Iterator[ops.Op]:
        yield ops.Set(HvCallCode.HvCallFlushVirtualAddressSpace, "rcx")
        yield ops.Set(_INPUT, "rdx")
        assert (yield ops.Vmmcall()) == 0
        yield ops.Out(DONE, 1, 0)

    def idle(_engine: Any) -> Iterator[ops.Op]:
        yield ops.Hlt()

    rig = CheckedRig(
        host,
        [flusher, idle],  # type: ignore[list-item]
        interrupts=False,
        prepare=lambda vm: vm.hv.set_flush_inhibit_design(FlushInhibitDesign.POSTED),
    )
    entries = [*for_vcpu(rig.vm.get_supported_cpuid(), 0, 1), *hv_cpuid_entries(HvFeatures())]
    for vcpu in rig.vcpus:
        vcpu.set_cpuid2(entries)
        to_long_mode(vcpu)
    rig.vm.hv.set_guest_os_id(1)
    rig.vm.memory.write(_INPUT, struct.pack("<QQQ", 0, 0, 1 << 1))
    caller, target = rig.vcpus
    target.hyperv_set_tlb_flush_inhibit(True)
    _change(host, changed, caller, target)

    def run() -> None:
        exit_ = caller.run()
        assert isinstance(exit_, Io), exit_

    rig.spawn(run, "flusher")
    rig.spawn(lambda: target.hyperv_set_tlb_flush_inhibit(False), "inhibitor")


def _change(host: Host, changed: str, caller: Any, target: Any) -> None:
    """Alter the objects of this world, for what the inhibitor's task does with them."""
    from vtlkit.kvm.requests import Req

    request, kick = caller.make_request, caller.kick

    def swapped(req: Req) -> None:
        request(Req.UNBLOCK if req is Req.EVENT and host.context() == "inhibitor" else req)

    if changed == "unblock":
        caller.make_request = swapped
    elif changed == "no-kick":
        caller.kick = lambda: None if host.context() == "inhibitor" else kick()
    elif changed == "no-grace-period":
        target.hv.flush_inhibit._design.grace_period = lambda: None


_RELEASE = with_variants(
    Protocol("review.release", "posted: a flusher whose target is no longer inhibited goes on", _built(_release)),
    [
        KnownBad(name, summary, _built(partial(_release, changed=name)), expected)
        for name, summary, expected in (
            ("unblock", "the release makes KVM_REQ_UNBLOCK in place of KVM_REQ_EVENT", RIGHT),
            (
                "no-kick",
                "the release makes its request and does not kick",
                in_steps(_LOST, 37, 47, 56),
            ),
            (
                "no-grace-period",
                "no grace period between the release and the look for suspended vCPUs",
                in_steps(_DEADLOCK, 26, 32, 34),
            ),
        )
    ],
)

PROTOCOLS = (_KICK, _RELEASE)
