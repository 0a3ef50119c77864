"""`kernel_models` in the registry: the steps and sizes of a model in SPIN's language of the same protocols."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from vtlkit.checker.protocols import Expected, KnownBad, Protocol, Sizes
from vtlkit.checker.protocols.kernel import Found, expect
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.checker.program import Threads

_GROUP: Final = "models at the sizes of SPIN's"
_ASSERTION, _DEADLOCK = ProblemKind.ASSERTION, ProblemKind.DEADLOCK


def _block(bug: str, _model: str, sizes: Sizes) -> Threads:
    from vtlkit.checker.protocols.kernel_models import BlockBug, kvm_block

    return kvm_block(_at_least_one(sizes["wakers"], "wakers"), BlockBug[bug])


def _inhibit(bug: str, _model: str, sizes: Sizes) -> Threads:
    from vtlkit.checker.protocols.kernel_models import InhibitBug, tlb_inhibit

    return tlb_inhibit(_at_least_one(sizes["flushers"], "flushers"), sizes["cycles"], InhibitBug[bug])


def _kick_all(bug: str, _model: str, sizes: Sizes) -> Threads:
    from vtlkit.checker.protocols.kernel_models import KickBug, kick_all

    return kick_all(_at_least_one(sizes["vcpus"], "vcpus"), sizes["updates"], KickBug[bug])


def _at_least_one(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} is at least 1")
    return value


def _states(sc: Found, tso: Found) -> Expected:
    return {"sc": sc, "tso": tso}


def _bad(
    name: str, summary: str, build: Callable[..., Threads], bug: str, sizes: Sizes, expected: Expected
) -> KnownBad:
    return KnownBad(name, summary, partial(build, bug), expected, sizes)


PROTOCOLS = (
    Protocol(
        "spin.block",
        "a vCPU that blocks does not sleep through an event",
        partial(_block, "NONE"),
        {"wakers": 1},
        ({"wakers": 2}, {"wakers": 4}),
        abstracts="kvm_vcpu_block: one word says that the vCPU blocks",
        group=_GROUP,
        known_bad=(
            _bad(
                "no-recheck",
                "no second look at what is pending",
                _block,
                "NO_RECHECK",
                {"wakers": 2},
                expect((_DEADLOCK, 9), (_DEADLOCK, 10), (_DEADLOCK, 9)),
            ),
            _bad(
                "no-barrier",
                "no full barrier between a store and the look at the other's",
                _block,
                "NO_BARRIER",
                {"wakers": 1},
                expect(None, (_DEADLOCK, 6), (_DEADLOCK, 5)),
            ),
        ),
    ),
    Protocol(
        "spin.tlb-inhibit",
        "no flusher stays suspended, and none flushes while flushes are inhibited",
        partial(_inhibit, "NONE"),
        {"flushers": 1, "cycles": 1},
        ({"flushers": 2, "cycles": 1}, {"flushers": 3, "cycles": 1}),
        models=("sc", "tso"),
        engine="states",
        abstracts="the posted TLB-flush inhibit, its wait being one word",
        group=_GROUP,
        known_bad=(
            _bad(
                "clear-not-synchronized",
                "no grace period between the end of the inhibition and the scan",
                _inhibit,
                "CLEAR_NOT_SYNCHRONIZED",
                {"flushers": 2, "cycles": 1},
                _states((_DEADLOCK, 23), (_DEADLOCK, 33)),
            ),
            _bad(
                "set-not-synchronized",
                "no grace period after the beginning of the inhibition",
                _inhibit,
                "SET_NOT_SYNCHRONIZED",
                {},
                _states((_ASSERTION, 8), (_ASSERTION, 10)),
            ),
            _bad(
                "suspended-first",
                "no SRCU, and `suspended` is stored before `waiting_on`",
                _inhibit,
                "SUSPENDED_FIRST",
                {},
                _states((_DEADLOCK, 11), (_DEADLOCK, 17)),
            ),
        ),
    ),
    Protocol(
        "spin.kick-all",
        "an updater has the semaphore in the end, and slots change under no vCPU",
        partial(_kick_all, "NONE"),
        {"vcpus": 1, "updates": 1},
        ({"vcpus": 3, "updates": 1},),
        models=("sc", "tso"),
        engine="states",
        abstracts="kick-all, with a generation in place of slots",
        group=_GROUP,
        endless=True,
        known_bad=(
            _bad(
                "tested-early",
                "a vCPU looks for the request before it says that it is in the guest",
                _kick_all,
                "TESTED_EARLY",
                {},
                _states((_DEADLOCK, 7), (_DEADLOCK, 9)),
            ),
            _bad(
                "consumed",
                "a vCPU takes the request, and may be in the guest again before the updater has queued",
                _kick_all,
                "CONSUMED",
                {},
                _states((_DEADLOCK, 15), (_DEADLOCK, 20)),
            ),
        ),
    ),
)
