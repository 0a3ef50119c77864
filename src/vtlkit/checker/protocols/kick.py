"""Every vCPU out of `run` and in again, by each of the three designs (docs/design/kick.md).

A vCPU that has not been entered before is the one whose first `run` begins after the kick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.result import ProblemKind

if TYPE_CHECKING:
    from vtlkit.kvm.vm import Vm

_SIZES: Final = {"vcpus": 1, "kickers": 1, "runs": 1, "resumes": 1}
_TWICE: Final = {"runs": 2}
_LARGE: Final = ({**_SIZES, "runs": 2},)
_TWO_KICKERS: Final = {**_SIZES, "kickers": 2, "resumes": 0}
_ROUNDS: Final = 2
DEADLOCK: Final = ProblemKind.DEADLOCK
ASSERTION: Final = ProblemKind.ASSERTION
LOST: Final = ProblemKind.LOST_WAKE_UP


def world(design: str, *, halted: bool = False, vm: str = "", vcpu: str = "") -> Build:
    """`vm` and `vcpu` are functions of `altered`."""

    def build(model: str, sizes: Sizes) -> Program:
        from vtlkit.checker.protocols import altered
        from vtlkit.checker.protocols.kicking import World
        from vtlkit.checker.protocols.rig import hosted
        from vtlkit.kvm.kick_all import KickDesign

        for name in ("vcpus", "kickers", "runs"):
            if sizes[name] < 1:
                raise ValueError(f"{name} is at least 1")
        if sizes["resumes"] not in (0, 1):
            raise ValueError("resumes is 0 (the kickers only kick) or 1")
        if halted and (sizes["runs"] > 1 or not sizes["resumes"]):
            raise ValueError("runs is 1, and so is resumes, where guests halt: nothing else ends a run")

        def alter(machine: Vm) -> None:
            if vm:
                change: Callable[[Vm], None] = getattr(altered, vm)
                change(machine)
            for each in machine.vcpus if vcpu else ():
                getattr(altered, vcpu)(each)

        return hosted(
            lambda host: World(
                host,
                KickDesign(design),
                sizes["vcpus"],
                sizes["kickers"],
                sizes["runs"],
                halted=halted,
                resumed=bool(sizes["resumes"]),
                alter=alter,
            ),
            model,
            rounds=_ROUNDS,
        )

    return build


_STICKY: Final = (
    KnownBad(
        "no-barrier",
        "nothing orders the store of the mode and the look at the requests",
        world("sticky", vcpu="enters_the_guest_without_a_barrier"),
        in_steps(DEADLOCK, None, 18, 21),
    ),
    KnownBad(
        "looked-for-early",
        "a vCPU looks for the kick before it says that it is in the guest",
        world("sticky", vcpu="looks_before_its_mode_is_published"),
        in_steps(DEADLOCK, 17, 18, 22),
    ),
    KnownBad(
        "consumed",
        "who leaves takes the request, and enters the guest again",
        world("sticky", vm="takes_the_request"),
        in_steps(DEADLOCK, 26, 36, 40),
        _TWICE,
    ),
    KnownBad(
        "readers-not-waited-for",
        "the kicker does not wait until nobody is inside",
        world("sticky", vm="does_not_wait_for_readers"),
        in_steps(ASSERTION, 17, 18, 22),
    ),
    KnownBad(
        "waits-first",
        "the kicker waits before it has made its requests",
        world("sticky", vm="waits_before_the_requests_are_made"),
        in_steps(DEADLOCK, 14, 15, 16),
    ),
    KnownBad(
        "forgotten",
        "the resume leaves one vCPU's request",
        world("sticky", vm="forgets_one_that_it_resumes"),
        in_steps(DEADLOCK, 22, 26, 32),
    ),
    KnownBad(
        "unordered-resume",
        "a vCPU finds its request gone, and not what was done before the resume",
        world("sticky", vm="resumes_without_a_barrier"),
        in_steps(ASSERTION, None, None, 27),
    ),
)
_STICKY_HALTED: Final = (
    KnownBad(
        "no-second-look",
        "a vCPU looks for the kick, and only then enters its wait queue",
        world("sticky", halted=True, vcpu="sleeps_without_a_second_look"),
        in_steps(DEADLOCK, 27, 30, 35),
    ),
    KnownBad(
        "no-barrier",
        "nothing orders the store of the sleeper's state and its look for the kick",
        world("sticky", halted=True, vcpu="enters_the_queue_without_a_barrier"),
        in_steps(LOST, None, 26, 31),
    ),
)
_FIRST_EXIT: Final = (
    KnownBad(
        "as-proposed",
        "a vCPU whose request has been taken is let in while the kicker still waits",
        world("first-exit", vm="lets_in_while_a_kicker_waits"),
        in_steps(DEADLOCK, 22, 23, 39),
        _TWICE,
    ),
)


_UNLOCK: Final = (
    KnownBad(
        "clears-anothers",
        "a kicker clears the requests of another that still waits",
        world("unlock", vm="clears_the_requests_of_other_kickers"),
        in_steps(DEADLOCK, 27, 30, 36),
        _TWO_KICKERS,
    ),
)


def _protocol(design: str, summary: str, halted: bool, known_bad: tuple[KnownBad, ...]) -> Protocol:
    name = f"kick.{design}{'-halted' if halted else ''}"
    large = () if halted else _LARGE if design == "first-exit" else (*_LARGE, _TWO_KICKERS)
    return Protocol(name, summary, world(design, halted=halted), _SIZES, large, engine="graphs", known_bad=known_bad)


_STAYS_OUT: Final = "between kick and resume no guest executes, and nobody waits for ever"
_NOBODY_WAITS: Final = "a kicker waits for nobody for ever, nor does a vCPU"

PROTOCOLS = (
    _protocol("sticky", f"{_STAYS_OUT}; guests compute", False, _STICKY),
    _protocol("sticky", f"{_STAYS_OUT}; guests halt", True, _STICKY_HALTED),
    _protocol("first-exit", f"{_NOBODY_WAITS}; guests compute", False, _FIRST_EXIT),
    _protocol("first-exit", f"{_NOBODY_WAITS}; guests halt", True, ()),
    _protocol("unlock", f"{_NOBODY_WAITS}; guests compute", False, _UNLOCK),
    _protocol("unlock", f"{_NOBODY_WAITS}; guests halt", True, ()),
)
