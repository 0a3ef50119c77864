"""A vCPU that waits, against its wake events: no way to wait sleeps through one (docs/design/wait.md).

Wakers are an interrupt, an NMI and a signal, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, Expected, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.host.api import Host

_SIZES: Final = {"vcpus": 1, "wakers": 1}
_LARGE: Final = ({"vcpus": 1, "wakers": 2},)
_WAKERS: Final = ("interrupt", "NMI", "signal")
_ROUNDS: Final = 2
WAYS: Final = {
    "mp-state": ("by_mp_state", "by MP state"),
    "call": ("by_call", "by the wait call"),
    "completion": ("by_completion", "by a completion that blocks"),
    "poll": ("by_polling", "by polling"),
}


def world(way: str = "", *, alter: str = "as_it_ships", wakers: Sequence[str] = ()) -> Build:
    """vCPUs that wait in a way of `waiting`, or halt; `alter` is a function of `altered`; `wakers` instead of the
    first ones."""

    def build(model: str, sizes: Sizes) -> Program:
        from vtlkit.checker.protocols import altered, waiting
        from vtlkit.checker.protocols.rig import hosted

        if sizes["vcpus"] < 1:
            raise ValueError("vcpus is at least 1")
        if not 1 <= sizes["wakers"] <= len(_WAKERS):
            raise ValueError("wakers is 1 (an interrupt), 2 (and an NMI) or 3 (and a signal)")
        chosen = wakers or _WAKERS[: sizes["wakers"]]
        change = getattr(altered, alter)

        def tasks(host: Host) -> None:
            if way:
                waiting.inactive(host, getattr(waiting, way), sizes["vcpus"], chosen, change)
            else:
                waiting.halted(host, sizes["vcpus"], chosen, change)

        return hosted(tasks, model, rounds=_ROUNDS)

    return build


_lost = partial(in_steps, ProblemKind.LOST_WAKE_UP)


def _sleeper(way: str, *expected: Expected) -> tuple[KnownBad, ...]:
    no_look, no_barrier, woken_early = expected
    return (
        KnownBad(
            "no-second-look",
            "it looks at what is pending, and only then enters its wait queue",
            world(way, alter="sleeps_without_a_second_look"),
            no_look,
        ),
        KnownBad(
            "no-barrier",
            "nothing orders the store of its state and the look at what is pending",
            world(way, alter="enters_the_queue_without_a_barrier"),
            no_barrier,
        ),
        KnownBad(
            "woken-early",
            "the sender kicks before the event is there to be found",
            world(way, alter="is_woken_before_the_event_is_there"),
            woken_early,
        ),
    )


def _protocol(name: str, summary: str, way: str, known_bad: tuple[KnownBad, ...]) -> Protocol:
    return Protocol(f"wait.{name}", summary, world(way), _SIZES, _LARGE, engine="graphs", known_bad=known_bad)


_ARMED_OVER = KnownBad(
    "takes-events-back",
    "arming the completion writes back the NMIs that were there before",
    world("by_completion_that_takes_all_events_back", wakers=("NMI",)),
    in_steps(ProblemKind.DEADLOCK, 18, 20, 26),
)
_EMPTIED_LATE = KnownBad(
    "emptied-late",
    "what is polled is emptied behind the look, not before it",
    world("by_polling_emptied_after_the_look"),
    in_steps(ProblemKind.DEADLOCK, 12, 15, 19),
)
_KNOWN_BAD: Final = {
    "mp-state": _sleeper("by_mp_state", _lost(14, 16, 21), _lost(None, 16, 20), _lost(14, 16, 20)),
    "call": _sleeper("by_call", _lost(12, 14, 19), _lost(None, 14, 18), _lost(12, 14, 18)),
    "completion": (
        *_sleeper("by_completion", _lost(16, 18, 24), _lost(None, 18, 23), _lost(16, 18, 23)),
        _ARMED_OVER,
    ),
    "poll": (_EMPTIED_LATE,),
}

PROTOCOLS = (
    _protocol(
        "halt",
        "a halted vCPU sleeps through no wake event",
        "",
        _sleeper("", _lost(22, 25, 31), _lost(None, 25, 30), _lost(22, 25, 30)),
    ),
    *[
        _protocol(name, f"an inactive VTL that waits {words} sleeps through no wake event", way, _KNOWN_BAD[name])
        for name, (way, words) in WAYS.items()
    ],
)
