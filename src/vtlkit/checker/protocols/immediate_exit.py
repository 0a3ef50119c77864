"""Forced exits against kicks, on both vendors (docs/design/immediate-exit.md)."""

from __future__ import annotations

from functools import partial

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.protocols.worlds import flag
from vtlkit.checker.result import ProblemKind

_ASSERTION, _DEADLOCK, _LOST = ProblemKind.ASSERTION, ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP


def _exit(spoil: str = "", *, signal: bool = False) -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        vendor = "vmx" if flag(sizes, "vmx") else "svm"
        from vtlkit.checker.protocols.worlds import common, immediate_exit

        world = immediate_exit.signal if signal else immediate_exit.kick
        return common.checked(partial(world, vendor=vendor, spoil=immediate_exit.SPOILS[spoil]), model)

    return build


_IGNORED = "a forced entry ignores the kick, and goes on"
_TWICE = "the event of an entry that is left at once is injected again"
PROTOCOLS = (
    Protocol(
        "exit.kick",
        "an exception, an NMI and an interrupt that meet at a forced exit are each taken once",
        _exit(),
        {"vmx": 0},
        ({"vmx": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "ignored-kick",
                _IGNORED,
                _exit("ignored-kick"),
                in_steps(_DEADLOCK, 29, 30, 35),
            ),
            KnownBad(
                "injected-twice",
                _TWICE,
                _exit("injected-twice"),
                in_steps(_ASSERTION, 68, 73, 80),
            ),
        ),
    ),
    Protocol(
        "exit.signal",
        "a signal that meets a forced exit ends run, is told once, and loses no event",
        _exit(signal=True),
        {"vmx": 0},
        ({"vmx": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "ignored-kick",
                _IGNORED,
                _exit("ignored-kick", signal=True),
                in_steps(_DEADLOCK, 9, 12, 12),
            ),
            KnownBad(
                "injected-twice",
                _TWICE,
                _exit("injected-twice", signal=True),
                in_steps(_ASSERTION, 14, 18, 19),
            ),
        ),
    ),
)
