"""The search with arrays: a whole frontier at a time.

A state is a number; a step adds to it what a table says for the thread's local state and the value of one word. What
was met before is found in a few sorted arrays, each at least twice as long as the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vtlkit.checker.result import ProblemKind, Result, Verdict
from vtlkit.checker.states import livelock, machine
from vtlkit.checker.states.automaton import PLAIN, WRITES, Automaton
from vtlkit.checker.states.layout import Layout
from vtlkit.checker.states.machine import State
from vtlkit.checker.states.outcome import PlainAccess, Problem, Request, visit_end
from vtlkit.checker.states.tables import CLOSED, GAVE_UP, UNKNOWN, WAITS, Packed, Table, Tables, member, unique

CHUNK: Final = 1 << 15
"""States looked at in one go: what belongs to them fits a processor's cache."""


class _Repacked(Exception):
    """The layout has changed: look at the chunk again."""


class ArraySearch:
    """One search. `run` fills `result` while it lasts. Raises TooWide for states of too many bits."""

    def __init__(self, automaton: Automaton, request: Request, result: Result) -> None:
        self.automaton, self.request, self.result = automaton, request, result
        self.layout = Layout(automaton)
        self.tables = Tables(automaton, self.layout)
        start = self.layout.pack(machine.initial(automaton))
        self.levels: list[Packed] = [np.array([start], np.int64)]
        """Of each depth, sorted."""
        self._runs: list[Packed] = [self.levels[0]]
        self._pieces: list[Packed] = []
        self._failure: tuple[State, State] | None = None
        self.ends = 0
        self._over = False

    def run(self) -> Problem | None:
        """Search until the end, a limit or the first problem."""
        result, request = self.result, self.request
        result.states = 1
        result.transitions = 0
        if self.automaton.plain and self.automaton.buffered and request.races:
            raise PlainAccess
        if any(self.automaton.locals[group][start].fails for group, start in enumerate(self.automaton.start)):
            return Problem(ProblemKind.ASSERTION, (machine.initial(self.automaton),))
        while True:
            problem = self._level()
            if problem is not None or self._over:
                return problem
            fresh = self._combined()
            result.frontier = fresh.size
            if not fresh.size:
                break
            self.levels.append(fresh)
            self._remember(fresh)
            result.states += fresh.size
            result.depth = len(self.levels) - 1
            if request.progress is not None:
                request.progress(result)
            if request.is_full(result):
                return None
        result.verdict = Verdict.PROVED
        if not request.livelock_wanted(result.states):
            return None
        return livelock.find(self)

    def _level(self) -> Problem | None:
        """Collect what follows the last level; report what is wrong there."""
        result, request = self.result, self.request
        self._pieces = []
        begin = 0
        while begin < self.levels[-1].size:
            chunk = self.levels[-1][begin : begin + CHUNK]
            try:
                fresh, stuck = self._expand(chunk)
            except _Repacked:
                continue
            if self.automaton.plain and self.request.races and (state := self._race(chunk)) is not None:
                return Problem(ProblemKind.DATA_RACE, self._path(state))
            if stuck.size and (state := self._judge(stuck)) is not None:
                return Problem(ProblemKind.DEADLOCK, self._path(state))
            self._pieces.append(self._unknown(fresh))
            begin += CHUNK
            result.memory_bytes = max(result.memory_bytes, self.bytes())
            if request.memory_limit is not None and result.memory_bytes >= request.memory_limit:
                self._over = True
                return None
        if self._failure is not None:
            before, after = self._failure
            return Problem(ProblemKind.ASSERTION, (*self._path(before), after))
        return None

    def _expand(self, states: Packed) -> tuple[Packed, Packed]:
        """What follows these states, sorted and each once; and those of them that nothing follows."""
        found = []
        moved = np.zeros(states.size, np.bool_)
        transitions = 0
        for thread, table, _, row in self._rows(states):
            step = table.steps[thread][row]
            opened = step != CLOSED
            moved |= opened
            after = states[opened] + step[opened]
            transitions += after.size
            found.append(after)
        assert self.result.transitions is not None
        self.result.transitions += transitions
        return unique(self.canonical(np.concatenate(found))), states[~moved]

    def _rows(self, states: Packed) -> Iterator[tuple[int, Table, Packed, Packed]]:
        """(thread, table, local states, rows) of each way, all of them filled. Raises _Repacked."""
        for column in self.tables.columns:
            thread, way, table = column
            local, row = self._look_up(column, states)
            step = table.steps[thread][row]
            if step.min() == UNKNOWN:
                self._fill(states, thread, way, table, local, row, step)
            yield thread, table, local, row

    def _look_up(self, column: tuple[int, int, Table], states: Packed) -> tuple[Packed, Packed]:
        """Local states of a thread, and the rows that stand for its steps."""
        thread, _, table = column
        bits = self.layout.local_bits[self.automaton.group_of[thread]]
        local = (states >> self.layout.thread_shift[thread]) & ((1 << bits) - 1)
        return local, table.base[local] + ((states >> table.shift[local]) & table.mask[local])

    def _fill(
        self, states: Packed, thread: int, way: int, table: Table, local: Packed, row: Packed, step: Packed
    ) -> None:
        missing = np.flatnonzero(step == UNKNOWN)
        _, first = np.unique(row[missing], return_index=True)
        where = missing[first]
        values = (row - table.base[local])[where].tolist()
        group = self.automaton.group_of[thread]
        locals_ = local[where].tolist()
        examples = [self.layout.unpack(int(state)) for state in states[where]]
        fits = self.tables.fill(table, group, way, locals_, values)
        if self._failure is None:
            self._failure = self._find_failure(group, thread, way, locals_, values, examples)
        if self.automaton.plain and self.automaton.buffered and self.request.races:
            raise PlainAccess
        if not fits:
            self._repack()
            raise _Repacked

    def _find_failure(
        self, group: int, thread: int, way: int, locals_: list[int], values: list[int], examples: list[State]
    ) -> tuple[State, State] | None:
        """A state, and the one after it in which a thread stands before a failure."""
        automaton = self.automaton
        for local, value, state in zip(locals_, values, examples, strict=True):
            target = automaton.row(group, local, way, value)
            if target is not None and automaton.locals[group][target[0]].fails:
                for other, other_way, after in machine.successors(automaton, state):
                    if (other, other_way) == (thread, way):
                        return state, machine.canonical(automaton, after)
        return None

    def _repack(self) -> None:
        """Everything anew, in the same order."""
        while moves := self.layout.grow():
            ends = [place for place, _ in moves[1:]]

            def moved(states: Packed, moves: list[tuple[int, int]] = moves, ends: list[int] = ends) -> Packed:
                new = states & ((1 << moves[0][0]) - 1)
                for (place, distance), end in zip(moves, [*ends, 62], strict=True):
                    new |= (states & ((1 << end) - (1 << place))) << distance
                return new

            self.levels = [moved(level) for level in self.levels]
            self._runs = [moved(run) for run in self._runs]
            self._pieces = [moved(piece) for piece in self._pieces]
        self.tables = Tables(self.automaton, self.layout)

    def canonical(self, states: Packed) -> Packed:
        """Sort the local states of threads that nobody tells apart."""
        layout = self.layout
        for group, members in enumerate(self.automaton.groups):
            if len(members) < 2:
                continue
            mask = (1 << layout.local_bits[group]) - 1
            shifts = [layout.thread_shift[thread] for thread in members]
            parts = [(states >> shift) & mask for shift in shifts]
            for end in range(len(parts) - 1, 0, -1):
                for index in range(end):
                    low, high = parts[index], parts[index + 1]
                    parts[index], parts[index + 1] = np.minimum(low, high), np.maximum(low, high)
            states = states & ~sum(mask << shift for shift in shifts)
            for part, shift in zip(parts, shifts, strict=True):
                states |= part << shift
        return states

    def _unknown(self, states: Packed) -> Packed:
        """Those of sorted states that were not met on earlier levels."""
        for run in self._runs:
            states = states[~member(states, run)]
        return states

    def _combined(self) -> Packed:
        if len(self._pieces) == 1:
            return self._pieces[0]
        return unique(np.concatenate(self._pieces))

    def _remember(self, fresh: Packed) -> None:
        runs = self._runs
        runs.append(fresh)
        while len(runs) > 1 and runs[-2].size <= 2 * runs[-1].size:
            merged = np.concatenate([runs[-2], runs[-1]])
            merged.sort(kind="stable")
            runs[-2:] = [merged]

    def bytes(self) -> int:
        """Of levels, runs, tables, and what belongs to a chunk."""
        kept = sum(level.nbytes for level in self.levels) + 2 * sum(run.nbytes for run in self._runs)
        kept += 2 * sum(piece.nbytes for piece in self._pieces)
        chunk = 8 * len(self.tables.columns) * min(CHUNK, self.levels[-1].size)
        return kept + 3 * chunk + self.tables.bytes

    def _judge(self, stuck: Packed) -> State | None:
        """A deadlock among states without steps, if there is one."""
        layout, tables = self.layout, self.tables
        what = np.zeros(stuck.size, np.uint8)
        for thread, group in enumerate(self.automaton.group_of):
            local = (stuck >> layout.thread_shift[thread]) & ((1 << layout.local_bits[group]) - 1)
            what |= tables.tables[group, 0].state[local]
        ended = stuck[(what & (WAITS | GAVE_UP)) == 0]
        self.ends += ended.size
        if self.request.visit is not None:
            for state in ended:
                visit_end(self.automaton, layout.unpack(int(state)), self.request.visit)
        dead = np.flatnonzero((what & (WAITS | GAVE_UP)) == WAITS)
        return layout.unpack(int(stuck[dead[0]])) if dead.size else None

    def _race(self, states: Packed) -> State | None:
        """A state in which two threads' next operations conflict, one of them plain."""
        seen: list[tuple[Packed, NDArray[np.uint8]]] = []
        for _, table, local, row in self._rows(states):
            word, kind = table.word[local], table.access[row]
            for other_word, other in seen:
                both = kind | other
                races = (word == other_word) & (word >= 0) & ((both & WRITES) != 0) & ((both & PLAIN) != 0)
                if races.any():
                    return self.layout.unpack(int(states[np.argmax(races)]))
            seen.append((word, kind))
        return None

    def step(self, column: tuple[int, int, Table], states: Packed) -> tuple[NDArray[np.intp], Packed]:
        """Where in the array a way is open, and what follows these. Only once all rows are filled."""
        step = column[2].steps[column[0]][self._look_up(column, states)[1]]
        opened = np.flatnonzero(step != CLOSED)
        return opened, self.canonical(states[opened] + step[opened])

    @staticmethod
    def chunks(states: Packed) -> Iterator[Packed]:
        """An array in pieces that fit a cache."""
        for begin in range(0, states.size, CHUNK):
            yield states[begin : begin + CHUNK]

    def merged(self) -> Packed:
        """All states, sorted."""
        return unique(np.concatenate(self._runs))

    def _path(self, state: State) -> tuple[State, ...]:
        """A shortest run to a state of the last level: predecessors are looked for, level by level."""
        return self.path(state, len(self.levels) - 1)

    def path(self, state: State, depth: int) -> tuple[State, ...]:
        """The same for a state of any level."""
        path = [state]
        self._pieces = []
        while depth:
            depth -= 1
            path.append(self._predecessor(depth, path[-1]))
        return tuple(reversed(path))

    def _predecessor(self, depth: int, state: State) -> State:
        target = self.layout.pack(state)
        for states in self.chunks(self.levels[depth]):
            for column in self.tables.columns:
                opened, after = self.step(column, states)
                hit = np.flatnonzero(after == target)
                if hit.size:
                    return self.layout.unpack(int(states[opened[hit[0]]]))
        raise AssertionError("a state without a predecessor")
