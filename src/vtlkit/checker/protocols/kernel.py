"""Models of the kernel's own code (`checker.models`), each barrier and each READ_ONCE of which can be left out.

What is expected of each variant is data. Those that break nothing are listed too (`changes`): that is an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from vtlkit.checker.protocols import RIGHT, Expected, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.checker.hosted import HostedProgram
    from vtlkit.host.api import Host

Model = Callable[["Host", Sizes], None]

_ASSERTION, _DEADLOCK = ProblemKind.ASSERTION, ProblemKind.DEADLOCK
_LOST, _RACE = ProblemKind.LOST_WAKE_UP, ProblemKind.DATA_RACE


def _program(model: Model, most: int, memory_model: str, sizes: Sizes) -> HostedProgram:
    from vtlkit.checker.hosted import HostedProgram

    for name, value in sizes.items():
        if not 1 <= value <= most:
            raise ValueError(f"{name} is between 1 and {most}")
    return HostedProgram(lambda host: model(host, sizes), memory_model)


def _built(model: Model, most: int = 16) -> Callable[[str, Sizes], HostedProgram]:
    return partial(_program, model, most)


def with_variants(protocol: Protocol, variants: Iterable[KnownBad]) -> Protocol:
    """A protocol with those that break something under some model as known-bad, the others as changes."""
    made = tuple(variants)
    broken = tuple([each for each in made if any(each.expect.values())])
    return replace(protocol, known_bad=broken, changes=tuple([each for each in made if each not in broken]))


def _changed(name: str, summary: str, model: Callable[..., None], expected: Expected) -> KnownBad:
    def change(host: Host, sizes: Sizes) -> None:
        model(host, sizes, name)

    return KnownBad(name, summary, _built(change), expected)


# --- blocking ---------------------------------------------------------------------------------------------------------


def _block(host: Host, sizes: Sizes, changed: str = "") -> None:
    from vtlkit.checker.models.block import block

    block(host, sizes["wakers"], changed)


_BLOCK = with_variants(
    Protocol(
        "kernel.block",
        "a vCPU that blocks does not sleep through an event",
        _built(_block),
        {"wakers": 1},
        ({"wakers": 2}, {"wakers": 3}),
        abstracts="kvm_vcpu_block and rcuwait_wake_up",
    ),
    [
        _changed(name, summary, _block, expected)
        for name, summary, expected in (
            (
                "no-recheck",
                "no look at what is pending after the state is set",
                in_steps(_LOST, 5, 8, 7),
            ),
            (
                "no-sleep-barrier",
                "__set_current_state in place of set_current_state",
                in_steps(_LOST, None, 8, 7),
            ),
            ("no-wake-barrier", "rcuwait_wake_up without smp_mb", in_steps(_LOST, None, None, 7)),
            ("wake-first", "the wake-up before the event", in_steps(_LOST, 6, 9, 7)),
        )
    ],
)

# --- requests ---------------------------------------------------------------------------------------------------------


def _requests(host: Host, sizes: Sizes, changed: str = "") -> None:
    from vtlkit.checker.models.requests import requests

    requests(host, sizes["requesters"], changed)


_REQUESTS = with_variants(
    Protocol(
        "kernel.requests",
        "a request ends the guest, and is answered with what it is about",
        _built(_requests),
        {"requesters": 1},
        ({"requesters": 2},),
        abstracts="kvm_make_request, kvm_vcpu_kick and vcpu_enter_guest",
    ),
    [
        _changed(name, summary, _requests, expected)
        for name, summary, expected in (
            (
                "tested-early",
                "requests are looked for before the mode is stored",
                in_steps(_DEADLOCK, 6, 9, 9),
            ),
            (
                "no-entry-barrier",
                "no full barrier between mode and requests",
                in_steps(_DEADLOCK, None, 8, 8),
            ),
            (
                "no-kick-barrier",
                "no smp_mb__before_atomic before the cmpxchg of the mode",
                in_steps(_DEADLOCK, None, None, 8),
            ),
            ("no-request-barrier", "no smp_wmb in __kvm_make_request", in_steps(_ASSERTION, None, None, 13)),
            ("no-check-barrier", "no smp_mb__after_atomic in kvm_check_request", in_steps(_ASSERTION, None, None, 13)),
            ("kick-first", "the kick before the request", in_steps(_DEADLOCK, 6, 10, 9)),
        )
    ],
)

# --- kick all ---------------------------------------------------------------------------------------------------------


def _kick_all(host: Host, sizes: Sizes, design: str = "sticky", changed: str = "", *, promise: bool = True) -> None:
    from vtlkit.checker.models.kick_all import kick_all

    kick_all(host, sizes["vcpus"], sizes["kicks"], design, changed, promise=promise)


def _kick_variants() -> Iterable[KnownBad]:
    def step(host: Host, sizes: Sizes, name: str) -> None:
        _kick_all(host, sizes, changed=name)

    for name, summary, expected in (
        (
            "tested-early",
            "the request is looked for before the mode is stored",
            in_steps(_DEADLOCK, 8, 13, 11),
        ),
        (
            "no-entry-barrier",
            "no full barrier between mode and request",
            in_steps(_DEADLOCK, None, 12, 10),
        ),
        (
            "no-kick-barrier",
            "no smp_mb__before_atomic before the cmpxchg of the mode",
            in_steps(_DEADLOCK, None, None, 10),
        ),
        (
            "no-wait",
            "the kicker does not take the semaphore",
            in_steps(_ASSERTION, 9, 18, 15),
        ),
        (
            "no-resume-barrier",
            "nothing orders what is done between kick and resume before the request is cleared",
            in_steps(_ASSERTION, None, None, 17),
        ),
    ):
        yield _changed(name, summary, step, expected)
    for design, summary, expected, alone in (
        (
            "first-exit",
            "the first exit clears the request",
            in_steps(_DEADLOCK, 14, 23, 19),
            in_steps(_DEADLOCK, 13, 21, 17),
        ),
        (
            "before-unlock",
            "the kicker clears the requests before up_write",
            in_steps(_ASSERTION, 12, 21, 15),
            RIGHT,
        ),
    ):
        yield KnownBad(design, summary, _built(partial(_kick_all, design=design)), expected)
        free: Model = partial(_kick_all, design=design, promise=False)
        yield KnownBad(f"{design}-return", f"{summary}; asked is only that the kick returns", _built(free), alone)


_KICK_ALL = with_variants(
    Protocol(
        "kernel.kick-all",
        "a kick of all vCPUs returns, and no guest runs until the resume",
        _built(_kick_all),
        {"vcpus": 1, "kicks": 1},
        ({"vcpus": 2, "kicks": 1}, {"vcpus": 2, "kicks": 2}),
        abstracts="KVM_KICK_ALL_RUNNING_VCPUS and KVM_RESUME_ALL_KICKED_VCPUS as posted",
    ),
    _kick_variants(),
)

# --- the posted inhibit -----------------------------------------------------------------------------------------------


def _posted(host: Host, sizes: Sizes, **change: Any) -> None:
    from vtlkit.checker.models.posted import Change, posted

    if "left_out" in change:
        change["left_out"] = frozenset(change["left_out"])
    posted(host, sizes["flushers"], sizes["inhibitors"], sizes["cycles"], Change(**change))


def _posted_changes() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, summary, what of it is not as posted."""
    from vtlkit.checker.compiler import RACING
    from vtlkit.checker.models.posted import BARRIERS, SITES, UNBLOCK

    for name, text in BARRIERS.items():
        yield f"no-{name}", f"without {text}", {"left_out": [name]}
    yield "no-wmb", "without all three smp_wmb", {"left_out": ["suspend-wmb", "release-wmb", "request-wmb"]}
    yield (
        "no-clear-srcu-fused",
        "the same, and the hypercall's own look is fused with its store",
        {
            "left_out": ["clear-srcu"],
            "compiled": {"complete.suspended": "fused"},
        },
    )
    yield "merged", "`suspended` and `waiting_on` are one word", {"merged": True}
    yield (
        "merged-torn",
        "one word, plain, and its stores are torn",
        {
            "merged": True,
            "compiled": {"suspend.waiting_on": "torn", "release.waiting_on": "torn"},
        },
    )
    yield "suspended-first", "`suspended` is stored before `waiting_on`", {"suspended_first": True}
    yield "unblock", "KVM_REQ_UNBLOCK in place of KVM_REQ_EVENT", {"request": UNBLOCK}
    for site in SITES:
        yield f"plain-{site.name}", f"plain: {site.text}", {"compiled": {site.name: RACING}}
        for form in site.forms:
            name = f"{site.name}-{form.replace(' ', '-')}"
            yield name, f"plain, and {form} by the compiler: {site.text}", {"compiled": {site.name: form}}


_POSTED_EXPECT: Final[Mapping[str, Expected]] = {
    "no-set-srcu": in_steps(_ASSERTION, 12, 18, 15),
    "no-clear-srcu": in_steps(_ASSERTION, 23, 36, 31),
    "no-wake-mb": in_steps(_LOST, None, None, 48),
    "no-sleep-mb": in_steps(_LOST, None, 54, 48),
    "no-wake": in_steps(_LOST, 31, 52, 46),
    "no-clear-srcu-fused": in_steps(_DEADLOCK, 23, 38, 32),
    "plain-run.suspended": in_steps(_RACE, None, None, 51),
    "plain-block.suspended": in_steps(_RACE, 31, 42, 45),
    "plain-flush.inhibit": in_steps(_RACE, 7, 7, 8),
    "plain-release.suspended": in_steps(_RACE, 31, 42, 45),
    "plain-set.inhibit": in_steps(_RACE, 7, 7, 8),
    "plain-clear.inhibit": in_steps(_RACE, 15, 20, 21),
}
"""What is not here breaks nothing at this size."""


def _posted_variants() -> Iterator[KnownBad]:
    yield KnownBad(
        "no-release-wmb-twice",
        "without smp_wmb between the two stores that let go, the inhibit being set and cleared twice",
        _built(partial(_posted, left_out=["release-wmb"])),
        in_steps(_DEADLOCK, None, None, 91),
        {"cycles": 2},
    )
    for name, summary, change in _posted_changes():
        yield KnownBad(name, summary, _built(partial(_posted, **change)), _POSTED_EXPECT.get(name, RIGHT))


_POSTED = with_variants(
    Protocol(
        "kernel.posted-inhibit",
        "no flusher stays suspended, and no flush is completed on an inhibited TLB",
        _built(_posted),
        {"flushers": 1, "inhibitors": 1, "cycles": 1},
        ({"flushers": 1, "inhibitors": 1, "cycles": 2}, {"flushers": 2, "inhibitors": 1, "cycles": 1}),
        abstracts="the posted TLB-flush inhibit: suspended, waiting_on, SRCU and kvm_vcpu_block",
    ),
    _posted_variants(),
)


def _compiled(host: Host, sizes: Sizes) -> None:
    from vtlkit.checker.compiler import compilations
    from vtlkit.checker.models.posted import SITES, Change, posted

    compilation = next(islice(compilations(SITES), sizes["compilation"] - 1, None))
    posted(host, 1, 1, 1, Change(compiled=compilation))


_COMPILED = Protocol(
    "kernel.posted-compiled",
    "kernel.posted-inhibit without any READ_ONCE and WRITE_ONCE, in the n-th way to compile it",
    _built(_compiled, most=288),
    {"compilation": 288},
    ({"compilation": 288},),
    abstracts="the same, and what a compiler may make of it",
)

PROTOCOLS = (_BLOCK, _REQUESTS, _KICK_ALL, _POSTED, _COMPILED)
