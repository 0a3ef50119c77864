"""KVM's own protocols as models: how a vCPU blocks, how TLB flushes are inhibited, how all vCPUs are kicked.

The code of the models is in `kernel_models`; the expected lengths are of the sizes that are the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, Expected, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.result import ProblemKind

_DEADLOCK = ProblemKind.DEADLOCK
_ASSERTION = ProblemKind.ASSERTION
_STORE_BUFFERS = ("sc", "tso")


def _builder(model: str, bugs: str, bug: str) -> Build:
    """The function `model` of `kernel_models`, with a member of its enumeration `bugs`."""

    def build(_model: str, sizes: Sizes) -> Program:
        from vtlkit.checker.protocols import kernel_models

        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is at least 1")
        program: Program = getattr(kernel_models, model)(**sizes, bug=getattr(kernel_models, bugs)[bug])
        return program

    return build


def _variants(model: str, bugs: str, variants: Mapping[str, tuple[str, Expected]]) -> tuple[KnownBad, ...]:
    return tuple(
        KnownBad(bug.lower().replace("_", "-"), summary, _builder(model, bugs, bug), expected)
        for bug, (summary, expected) in variants.items()
    )


PROTOCOLS = (
    Protocol(
        "kvm_block",
        "a vCPU that blocks sleeps through no event",
        _builder("kvm_block", "BlockBug", "NONE"),
        {"wakers": 2},
        ({"wakers": 4},),
        known_bad=_variants(
            "kvm_block",
            "BlockBug",
            {
                "NO_RECHECK": (
                    "no second look at what is pending before the sleep",
                    in_steps(_DEADLOCK, 9, 10, 9),
                ),
                "NO_BARRIER": (
                    "no full barrier between a store and the look at the other's: right under SC",
                    in_steps(_DEADLOCK, None, 8, 7),
                ),
            },
        ),
        abstracts="kvm_vcpu_block() and rcuwait_wake_up()",
    ),
    Protocol(
        "tlb_inhibit",
        "no flush while flushes are inhibited, and no flusher stays suspended",
        _builder("tlb_inhibit", "InhibitBug", "NONE"),
        {"flushers": 2, "cycles": 1},
        ({"flushers": 3, "cycles": 1}, {"flushers": 2, "cycles": 2}),
        _STORE_BUFFERS,
        known_bad=_variants(
            "tlb_inhibit",
            "InhibitBug",
            {
                "CLEAR_NOT_SYNCHRONIZED": (
                    "no grace period between the end of the inhibition and the scan for who is suspended",
                    {"sc": (_DEADLOCK, 23), "tso": (_DEADLOCK, 33)},
                ),
                "SET_NOT_SYNCHRONIZED": (
                    "no grace period after the beginning of the inhibition",
                    {"sc": (_ASSERTION, 8), "tso": (_ASSERTION, 10)},
                ),
                "SUSPENDED_FIRST": (
                    "no grace periods, and a flusher says that it is suspended before it says on whom",
                    {"sc": (_DEADLOCK, 18), "tso": (_DEADLOCK, 26)},
                ),
            },
        ),
        abstracts="KVM_HYPERV_SET_TLB_FLUSH_INHIBIT as posted",
    ),
    Protocol(
        "kick_all",
        "who changes what vCPUs use waits for no guest for ever, and no vCPU uses it meanwhile",
        _builder("kick_all", "KickBug", "NONE"),
        {"vcpus": 2, "updates": 1},
        ({"vcpus": 3, "updates": 1}, {"vcpus": 2, "updates": 2}),
        _STORE_BUFFERS,
        engine="states",
        endless=True,
        known_bad=_variants(
            "kick_all",
            "KickBug",
            {
                "TESTED_EARLY": (
                    "a vCPU looks for a request before it says that it is in the guest",
                    {"sc": (_DEADLOCK, 9), "tso": (_DEADLOCK, 12)},
                ),
                "CONSUMED": (
                    "a vCPU takes the request away, and may be in the guest again before the updater has queued",
                    {"sc": (_DEADLOCK, 17), "tso": (_DEADLOCK, 23)},
                ),
            },
        ),
        abstracts="kvm_make_all_cpus_request() and the guest mode of a vCPU",
    ),
)
