"""Requests of a vCPU that enters the guest, runs there or blocks: none is lost (docs/design/requests.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.host.api import Host

_SIZES: Final = {"senders": 1}
_LARGE: Final = ({"senders": 2},)
_ROUNDS: Final = 2
DEADLOCK: Final = ProblemKind.DEADLOCK
LOST: Final = ProblemKind.LOST_WAKE_UP


def world(name: str, alter: str = "as_it_ships") -> Build:
    """`name` is a function of `requesting`, `alter` one of `altered`."""

    def build(model: str, sizes: Sizes) -> Program:
        from vtlkit.checker.protocols import altered, requesting
        from vtlkit.checker.protocols.rig import hosted

        senders = sizes["senders"]
        if not 1 <= senders <= requesting.MOST_SENDERS:
            raise ValueError(f"senders is 1 to {requesting.MOST_SENDERS}")

        def tasks(host: Host) -> None:
            getattr(requesting, name)(host, senders, getattr(altered, alter))

        return hosted(tasks, model, rounds=_ROUNDS)

    return build


_EVENT: Final = (
    KnownBad(
        "no-barrier",
        "nothing orders the store of the mode and the look at the requests",
        world("events", "enters_the_guest_without_a_barrier"),
        in_steps(DEADLOCK, None, 14, 17),
    ),
    KnownBad(
        "looked-for-early",
        "the vCPU looks for requests before it says that it is in the guest",
        world("events", "looks_before_its_mode_is_published"),
        in_steps(DEADLOCK, 13, 14, 18),
    ),
    KnownBad(
        "asked-early",
        "the sender makes the request before the event is there to be found",
        world("events", "is_asked_before_the_event_is_there"),
        in_steps(DEADLOCK, 13, 14, 18),
    ),
    KnownBad(
        "kicked-early",
        "the sender kicks, and publishes the event afterwards",
        world("events", "is_woken_before_the_event_is_there"),
        in_steps(DEADLOCK, 13, 14, 17),
    ),
)
_UNBLOCK: Final = (
    KnownBad(
        "no-second-look",
        "the vCPU looks for the request, and only then enters its wait queue",
        world("unblock", "sleeps_without_a_second_look"),
        in_steps(LOST, 9, 11, 14),
    ),
    KnownBad(
        "woken-early",
        "the sender kicks, and makes the request afterwards",
        world("unblock", "is_woken_before_it_is_asked"),
        in_steps(LOST, 9, 11, 14),
    ),
)

PROTOCOLS = (
    Protocol(
        "request.event",
        "no event is lost whose request is made while the vCPU enters the guest or runs there",
        world("events"),
        _SIZES,
        _LARGE,
        engine="graphs",
        known_bad=_EVENT,
    ),
    Protocol(
        "request.unblock",
        "no vCPU that is asked to look again blocks on",
        world("unblock"),
        _SIZES,
        _LARGE,
        engine="graphs",
        known_bad=_UNBLOCK,
    ),
)
