"""Flush hypercalls against the inhibit of their target's TLB, in both designs (docs/design/tlb-flush-inhibit.md)."""

from __future__ import annotations

from functools import partial

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import RIGHT, Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.protocols.worlds import flag, size
from vtlkit.checker.result import ProblemKind

_ASSERTION, _DEADLOCK, _LOST = ProblemKind.ASSERTION, ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP
_PROMISE = "no flush completes on an inhibited TLB, and no flusher sleeps on one that is not"
_SIZES = {"inhibits": 1, "flushers": 1, "look": 0}


def _inhibited(design: str, spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        inhibits, flushers, look = (
            size(sizes, "inhibits", 1, 8),
            size(sizes, "flushers", 1, 8),
            size(sizes, "look", 0, 2),
        )
        if look == 2 and flushers > 1:
            raise ValueError("look 2 is about a single flusher: requests of several cannot be told apart")
        from vtlkit.checker.protocols.worlds import common, flush_inhibit
        from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign

        return common.checked(
            partial(
                flush_inhibit.inhibited,
                design=FlushInhibitDesign(design),
                inhibits=inhibits,
                flushers=flushers,
                look=flush_inhibit.Look(look),
                spoil=flush_inhibit.SPOILS[spoil],
            ),
            model,
        )

    return build


def _destroyed(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        flushers, posted = size(sizes, "flushers", 1, 8), flag(sizes, "posted")
        from vtlkit.checker.protocols.worlds import common, flush_inhibit
        from vtlkit.kvm.hyperv.flush_inhibit import FlushInhibitDesign

        design = FlushInhibitDesign("posted" if posted else "ours")
        spoiled = flush_inhibit.SPOILS[spoil]
        return common.checked(partial(flush_inhibit.destroyed, design=design, flushers=flushers, spoil=spoiled), model)

    return build


_OURS = (
    KnownBad(
        "look-first",
        "a flusher looks at the inhibit before it says for whom it waits",
        _inhibited("ours", "look-first"),
        in_steps(_DEADLOCK, 19, 23, 24),
    ),
    KnownBad(
        "checked-before-requested",
        "a flusher looks at the inhibit before its requests, and not again",
        _inhibited("ours", "checked-before-requested"),
        in_steps(_ASSERTION, 25, 28, 29),
        {"look": 2},
    ),
    KnownBad(
        "no-wake",
        "the inhibit is cleared, and nobody is woken",
        _inhibited("ours", "no-wake"),
        in_steps(_DEADLOCK, 4, 7, 7),
    ),
    KnownBad(
        "kick-only",
        "who waits is kicked without a request",
        _inhibited("ours", "kick-only"),
        in_steps(_DEADLOCK, 12, 17, 19),
    ),
    KnownBad(
        "no-barrier",
        "no barrier between the inhibit and the look for who waits",
        _inhibited("ours", "no-barrier"),
        in_steps(_DEADLOCK, None, 24, 24),
    ),
)
_POSTED = (
    KnownBad(
        "no-grace-period",
        "the words and their barriers alone",
        _inhibited("posted", "no-grace-period"),
        in_steps(_DEADLOCK, 23, 29, 30),
    ),
    KnownBad(
        "no-grace-period-set",
        "the same, as it shows to who translates while he inhibits",
        _inhibited("posted", "no-grace-period"),
        in_steps(_ASSERTION, 27, 31, 32),
        {"look": 2},
    ),
    KnownBad(
        "suspended-first",
        "no grace period, and the two words in the other order",
        _inhibited("posted", "suspended-first-no-grace-period"),
        in_steps(_DEADLOCK, 23, 30, 29),
    ),
    KnownBad(
        "wake-first",
        "a flusher is woken before the words are taken back",
        _inhibited("posted", "wake-first"),
        in_steps(_LOST, 39, 49, 60),
    ),
)
PROTOCOLS = (
    Protocol(
        "flush-inhibit.ours",
        _PROMISE,
        _inhibited("ours"),
        _SIZES,
        ({"look": 1}, {"look": 2}),
        engine="graphs",
        known_bad=_OURS,
    ),
    Protocol(
        "flush-inhibit.posted",
        _PROMISE,
        _inhibited("posted"),
        _SIZES,
        ({"look": 1}, {"look": 2}),
        engine="graphs",
        known_bad=_POSTED,
        changes=(
            KnownBad(
                "only-suspended-first",
                "the two words in the other order: the grace period makes up for it",
                _inhibited("posted", "suspended-first"),
                RIGHT,
            ),
        ),
    ),
    Protocol(
        "flush-inhibit.destroyed",
        "a target that is destroyed leaves no flusher asleep",
        _destroyed(),
        {"flushers": 1, "posted": 0},
        ({"posted": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "look-first",
                "a flusher looks before it says for whom it waits",
                _destroyed("look-first"),
                in_steps(_DEADLOCK, 20, 24, 25),
            ),
        ),
    ),
)
