"""Every trace of every thread, for every value that its reads might find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vtlkit.checker.litmus.lkmm.events import WRITES, NeedsValue, Recorder, Trace, possible
from vtlkit.checker.litmus.syntax import Address, LitmusError, LitmusTest, Scalar

TRACES_LIMIT: Final = 20_000
"""Of one thread: beyond that a test is not small."""

Values = dict[Address, list[Scalar]]


def all_traces(test: LitmusTest) -> list[list[Trace]]:
    """For each thread its traces, in which reads find what some thread might have written.

    What might be written depends on what is read: rounds, until nothing is new. A value that is really read comes by a
    chain of distinct writes, so there need be no more rounds than there are writes. Raises LitmusError for a thread
    with more than TRACES_LIMIT.
    """
    values: Values = {address: [value] for address, value in test.initial.items()}
    rounds = 0
    while True:
        found = [_of_thread(test, thread, values) for thread in range(len(test.threads))]
        new = _written(found, values)
        writes = sum(max((_writes(trace) for trace in traces), default=0) for traces in found)
        rounds += 1
        if not new or rounds > writes:
            return found


def _writes(trace: Trace) -> int:
    return sum(event.kind in WRITES for event in trace.events)


def _written(found: list[list[Trace]], values: Values) -> bool:
    """Add to `values` what these traces write; whether there was something new."""
    new = False
    for traces in found:
        for trace in traces:
            for event in trace.events:
                if event.kind in WRITES and event.at is not None:
                    known = values.setdefault(event.at, [0])
                    if event.value not in known:
                        known.append(event.value)
                        new = True
    return new


def _of_thread(test: LitmusTest, thread: int, values: Values) -> list[Trace]:
    recorder = Recorder(test, thread)
    found: list[Trace] = []
    todo: list[tuple[Scalar, ...]] = [()]
    while todo:
        given = todo.pop()
        try:
            found.append(recorder.trace(given))
        except NeedsValue as need:
            choices: Sequence[Scalar] = possible(need.lock, values.get(need.at, [0]))
            todo += [(*given, choice) for choice in reversed(choices)]
        if len(found) + len(todo) > TRACES_LIMIT:
            line = test.threads[thread].line
            raise LitmusError(line, f"P{thread} has more than {TRACES_LIMIT} possible runs: too many for --model lkmm")
    return found
