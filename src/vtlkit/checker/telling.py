"""A counterexample as rows of text, for a table: who does what in which step, what was seen from where, who waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vtlkit.checker.phrases import location_name
from vtlkit.checker.reasons import SEPARATOR
from vtlkit.checker.result import Counterexample, Result, Step

LONG: Final = 60
"""Steps of a run that is shown whole."""
_STRETCH: Final = 8
"""Steps of one task in a row of a longer run that are shown whole."""
_ENDS: Final = 2
"""Steps that are shown at each end of a stretch that is not."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: the step's number from 1 ("" where steps are left out), its thread, what happens, the code's line."""

    number: str
    thread: int
    text: str
    place: str


def rows(counterexample: Counterexample) -> list[Row]:
    """The steps; in a long run the middle of what one task does alone is left out, but never what others refer to."""
    steps = counterexample.steps
    hidden = _hidden(counterexample) if len(steps) > LONG else frozenset()
    found: list[Row] = []
    skipped = 0
    for index, step in enumerate(steps):
        if index in hidden:
            skipped += 1
            if index + 1 not in hidden:
                found.append(Row("", step.thread, f"... {skipped} step{'s' if skipped > 1 else ''} ...", ""))
                skipped = 0
            continue
        found.append(Row(str(index + 1), step.thread, _text(step), step.place))
    return found


def waits(counterexample: Counterexample, names: Sequence[str]) -> list[str]:
    """A line for each thread that waits for ever, each followed by why, a reason a line, indented."""
    lines = []
    for each in counterexample.waiting:
        place = f" ({each.place})" if each.place else ""
        lines.append(
            f"{names[each.thread]} waits: {location_name(each.location)} is {each.value!r} and stays so{place}"
        )
        reasons = each.why.split(SEPARATOR) if each.why else []
        lines += [f"  {reason}" for reason in reasons]
    return lines


def heading(result: Result) -> str:
    """What broke, in how many steps."""
    found = result.counterexample
    assert found is not None
    count = len(found.steps)
    shortest = ", the fewest there can be" if found.shortest else ""
    return f"{found.kind.value} in {count} step{'' if count == 1 else 's'}{shortest}: {found.text}"


def plain_table(counterexample: Counterexample, names: Sequence[str]) -> list[str]:
    """The table without anything that needs a terminal, for a message."""
    shown = rows(counterexample)
    used = [thread for thread in range(len(names)) if any(row.thread == thread for row in shown)]
    widths = {
        thread: max(len(names[thread]), *(len(row.text) for row in shown if row.thread == thread)) for thread in used
    }
    lines = ["  ".join(["   #", *(f"{names[thread]:<{widths[thread]}}" for thread in used)]).rstrip()]
    for row in shown:
        cells = [f"{row.text if thread == row.thread else '':<{widths[thread]}}" for thread in used]
        lines.append("  ".join([f"{row.number:>4}", *cells, row.place]).rstrip())
    return lines


def describe(result: Result) -> str:
    """All of a counterexample as one text, for a message."""
    found = result.counterexample
    assert found is not None
    return "\n".join([heading(result), *plain_table(found, result.names), *waits(found, result.names)])


def _text(step: Step) -> str:
    if step.source is not None:
        return f"{step.what} <-{step.source + 1}{' (old)' if step.stale else ''}"
    return f"{step.what} <-init{' (old)' if step.stale else ''}" if _read_initial(step) else step.what


def _read_initial(step: Step) -> bool:
    return step.read is not None and not step.buffered


def _hidden(counterexample: Counterexample) -> frozenset[int]:
    """Steps in the middle of long stretches that nothing refers to."""
    steps = counterexample.steps
    kept = {index for each in counterexample.waiting for index in each.missed}
    for index, step in enumerate(steps):
        if step.source is not None and steps[step.source].thread != step.thread:
            kept |= {index, step.source}
        if step.stale or step.buffered:
            kept.add(index)
    hidden = set()
    for first, last in _stretches(steps):
        if last - first > _STRETCH:
            hidden |= set(range(first + _ENDS, last - _ENDS)) - kept
    return frozenset(hidden)


def _stretches(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of steps of one task in a row."""
    first = 0
    for index in range(1, len(steps) + 1):
        if index == len(steps) or steps[index].thread != steps[first].thread:
            yield first, index
            first = index
