"""Memory that changes under running guests: lists, transactions, plain changes (docs/design/memory-transactions.md)."""

from __future__ import annotations

from functools import partial

from vtlkit.checker.program import Program
from vtlkit.checker.protocols import Build, KnownBad, Protocol, Sizes, in_steps
from vtlkit.checker.protocols.worlds import flag, size
from vtlkit.checker.result import ProblemKind

_ASSERTION = ProblemKind.ASSERTION


def _changed(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        vcpus, listed, waits = size(sizes, "vcpus", 1, 4), flag(sizes, "list"), flag(sizes, "waits")
        from vtlkit.checker.protocols.worlds import common, memory

        return common.checked(
            partial(memory.changed, vcpus=vcpus, transaction=not listed, waits=waits, spoil=memory.SPOILS[spoil]), model
        )

    return build


def _added(spoil: str = "") -> Build:
    def build(model: str, _sizes: Sizes) -> Program:
        from vtlkit.checker.protocols.worlds import common, memory

        return common.checked(partial(memory.added, spoil=memory.SPOILS[spoil]), model)

    return build


def _excluded(spoil: str = "") -> Build:
    def build(model: str, sizes: Sizes) -> Program:
        plain, attributes = size(sizes, "plain", 0, 4), size(sizes, "attributes", 0, 4)
        from vtlkit.checker.protocols.worlds import common, memory

        return common.checked(
            partial(memory.excluded, plain=plain, attributes=attributes, spoil=memory.SPOILS[spoil]), model
        )

    return build


PROTOCOLS = (
    Protocol(
        "memory.transaction",
        "slots that change together change at once for each vCPU, and none goes on with what was (waits)",
        _changed(),
        {"vcpus": 1, "list": 0, "waits": 1},
        ({"list": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "one-by-one",
                "each slot of a list is published for itself",
                _changed("one-by-one"),
                in_steps(_ASSERTION, 29, 30, 32),
                {"list": 1, "waits": 0},
            ),
            KnownBad(
                "no-request",
                "vCPUs are not told of the change",
                _changed("no-request"),
                in_steps(_ASSERTION, 5, 6, 6),
            ),
        ),
    ),
    Protocol(
        "memory.fault",
        "memory that comes where there was none is found, or was not there yet",
        _added(),
        engine="graphs",
        known_bad=(
            KnownBad(
                "value-first",
                "the new state is there before the log says so",
                _added("value-first"),
                in_steps(_ASSERTION, 16, 17, 17),
            ),
        ),
    ),
    Protocol(
        "memory.exclusion",
        "a transaction, plain changes and attributes lose nothing of each other",
        _excluded(),
        {"plain": 1, "attributes": 1},
        ({"plain": 2, "attributes": 1},),
        engine="graphs",
        known_bad=(
            KnownBad(
                "stale-commit",
                "the commit publishes what was staged, not the changes",
                _excluded("stale-commit"),
                in_steps(_ASSERTION, 17, 19, 20),
                {"plain": 0, "attributes": 1},
            ),
        ),
    ),
)
