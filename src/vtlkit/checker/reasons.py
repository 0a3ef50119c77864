"""Why a thread waits for ever, read off the steps of a run: what it did not see, and who did not see that it waits.

It is the same for both searches: only steps are looked at, and a step is named by its number from 1, as in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vtlkit.checker.ops import Location
from vtlkit.checker.phrases import READING, WRITING, location_name
from vtlkit.checker.result import Counterexample, ProblemKind, Step, Waiting

LOOKS = 2
"""Words that a waiter looked at last: what it looked at before is seldom why it waits."""
SEPARATOR = "; "
"""Between the reasons in `Waiting.why`."""


def explained(found: Counterexample, names: Sequence[str]) -> Counterexample:
    """The same with `why` and `missed` filled in, and a text that says who waits. `names`: of the threads."""
    if found.kind not in (ProblemKind.DEADLOCK, ProblemKind.LOST_WAKE_UP):
        return found
    waiting = tuple(_explain(each, found.steps, names) for each in found.waiting)
    who = ", ".join(names[each.thread] for each in waiting)
    text = f"{who} {'waits' if len(waiting) == 1 else 'wait'} for ever"
    if found.kind is ProblemKind.LOST_WAKE_UP:
        text += ", though what should end a wait has happened"
    return replace(found, text=text, waiting=waiting)


def _writes(steps: Sequence[Step], location: Location) -> list[int]:
    """Steps by which others see a new value of a location."""
    found = [index for index, step in enumerate(steps) if step.location == location]
    return [index for index in found if steps[index].what.startswith(WRITING)]


def _explain(waiting: Waiting, steps: Sequence[Step], names: Sequence[str]) -> Waiting:
    writes = _writes(steps, waiting.location)
    if not writes:
        return replace(waiting, why="nobody has written it", missed=())
    last = writes[-1]
    if steps[last].thread != waiting.thread:
        # A lock, most likely: what it waits for is not what it said itself.
        return _of_others(waiting, steps, writes, names)
    missed, reasons = _missed(waiting, steps)
    reasons += _looked_early(waiting, steps, last)
    return replace(waiting, why=SEPARATOR.join(reasons), missed=missed)


def _of_others(waiting: Waiting, steps: Sequence[Step], writes: list[int], names: Sequence[str]) -> Waiting:
    """Somebody else wrote the word last. What was there in between, after the waiter's last step, came and went."""
    *before, last = writes
    own = max((index for index, step in enumerate(steps) if step.thread == waiting.thread), default=-1)
    missed = tuple([index for index in before if index > own])
    why = f"{names[steps[last].thread]} wrote it last, in step {last + 1}"
    if missed:
        numbers = ", ".join(str(index + 1) for index in missed)
        why += f"{SEPARATOR}what step {numbers} wrote was gone before it looked"
    return replace(waiting, why=why, missed=missed)


def _missed(waiting: Waiting, steps: Sequence[Step]) -> tuple[tuple[int, ...], list[str]]:
    """What others wrote after the waiter's last look at a word; a sentence for each word, the last look first."""
    missed: set[int] = set()
    reasons: list[str] = []
    seen: list[Location] = [waiting.location, None]
    for index in reversed(range(len(steps))):
        step = steps[index]
        if step.thread != waiting.thread or step.location in seen or step.buffered:
            continue
        seen.append(step.location)
        if not step.what.startswith(READING):
            continue
        known = step.source if step.source is not None else -1
        known = index if step.what.startswith(WRITING) else known
        later = [
            other for other in _writes(steps, step.location) if other > known and steps[other].thread != step.thread
        ]
        if later and len(reasons) < LOOKS:
            missed |= set(later)
            numbers = ", ".join(str(other + 1) for other in later)
            name = location_name(step.location)
            reasons.append(f"looked at {name} in step {index + 1}, without what step {numbers} wrote")
    return tuple(sorted(missed)), reasons


def _looked_early(waiting: Waiting, steps: Sequence[Step], stored: int) -> list[str]:
    """Each other thread's last look at what the waiter has stored to say that it waits, where it did not see that."""
    looks = {
        step.thread: index
        for index, step in enumerate(steps)
        if step.location == waiting.location and step.what.startswith(READING) and step.thread != waiting.thread
    }
    reasons: list[str] = []
    for index in looks.values():
        step = steps[index]
        if step.what.startswith(WRITING) or (step.source is not None and step.source >= stored):
            continue
        how = f"before step {stored + 1} stored it" if index < stored else f"and did not see step {stored + 1}"
        reasons.append(f"step {index + 1} looked at {location_name(waiting.location)} {how}")
    return reasons
