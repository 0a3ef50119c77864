"""One state at a time, in plain Python: what the dictionary search is made of, and every counterexample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from vtlkit.checker.ops import Location, Value
from vtlkit.checker.states.automaton import FLUSH, NO_STEP, NO_WORD, OP, PLAIN, WRITES, Automaton

State = tuple[tuple[int, ...], tuple[int, ...]]
"""(local state of each thread, number of each word's value), without the zeros at the end of the latter."""

GOES_ON: Final = "goes on"
ENDED: Final = "ended"
GAVE_UP: Final = "gave up"
DEADLOCK: Final = "deadlock"


def initial(automaton: Automaton) -> State:
    """Where it begins."""
    return tuple([automaton.start[group] for group in automaton.group_of]), ()


def value_of(state: State, word: int) -> int:
    """Number of a word's value; 0 where there is no word."""
    return state[1][word] if 0 <= word < len(state[1]) else 0


def successors(automaton: Automaton, state: State) -> Iterator[tuple[int, int, State]]:
    """(thread, way, state after it) for all steps, of real threads: nothing is sorted."""
    for thread, local in enumerate(state[0]):
        group = automaton.group_of[thread]
        for way in (OP, FLUSH) if automaton.buffered else (OP,):
            word = automaton.locals[group][local].words[way]
            if word == NO_STEP:
                continue
            old = value_of(state, word)
            row = automaton.row(group, local, way, old)
            if row is None:
                continue
            locals_ = (*state[0][:thread], row[0], *state[0][thread + 1 :])
            values = state[1] if word == NO_WORD or row[1] == old else _replaced(state[1], word, row[1])
            yield thread, way, (locals_, values)


def _replaced(values: tuple[int, ...], word: int, value: int) -> tuple[int, ...]:
    changed = [*values, *[0] * (word + 1 - len(values))]
    changed[word] = value
    while changed and not changed[-1]:
        changed.pop()
    return tuple(changed)


def canonical(automaton: Automaton, state: State) -> State:
    """The state that stands for this one and all that nobody can tell from it."""
    if len(automaton.groups) == len(automaton.group_of):
        return state
    locals_ = list(state[0])
    for members in automaton.groups:
        if len(members) > 1:
            for thread, local in zip(members, sorted([locals_[thread] for thread in members]), strict=True):
                locals_[thread] = local
    return tuple(locals_), state[1]


def judge(automaton: Automaton, state: State) -> str:
    """What a state without steps is: `ENDED`, `GAVE_UP` or `DEADLOCK`."""
    here = [automaton.locals[automaton.group_of[thread]][local] for thread, local in enumerate(state[0])]
    if any(local.gave_up for local in here):
        return GAVE_UP
    return ENDED if all(local.ended or local.may_sleep for local in here) else DEADLOCK


def memory(automaton: Automaton, state: State) -> Mapping[Location, Value]:
    """Value of every location that was met."""
    words = automaton.words
    return {location: words.values[word][value_of(state, word)] for word, location in enumerate(words.locations)}


def access(automaton: Automaton, state: State, thread: int) -> tuple[int, int]:
    """(word, READS, WRITES and PLAIN) of a thread's next operation; WRITES only if it writes. (NO_STEP, 0): none."""
    group = automaton.group_of[thread]
    local = automaton.locals[group][state[0][thread]]
    kind, word = local.access, local.words[OP]
    if not kind or word < 0:
        return NO_STEP, 0
    if local.writes_sometimes and not automaton.writes(local, value_of(state, word)):
        kind &= ~WRITES
    return word, kind


def race(automaton: Automaton, state: State) -> tuple[int, int] | None:
    """Two threads whose next operations conflict, one of them plain."""
    accesses = [access(automaton, state, thread) for thread in range(len(state[0]))]
    for second, (word, kind) in enumerate(accesses):
        for first, (other_word, other) in enumerate(accesses[:second]):
            if word == other_word >= 0 and (kind | other) & WRITES and (kind | other) & PLAIN:
                return first, second
    return None
