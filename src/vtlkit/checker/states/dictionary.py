"""The search in plain Python: a dictionary from each state to the one before it. For few states, or very wide ones."""

from __future__ import annotations

from typing import Final

from vtlkit.checker.result import ProblemKind, Result, Verdict
from vtlkit.checker.states import machine
from vtlkit.checker.states.automaton import Automaton
from vtlkit.checker.states.machine import State
from vtlkit.checker.states.outcome import NO_END, PlainAccess, Problem, Request, visit_end

STATE_BYTES: Final = 300
"""Of an entry of the dictionary with its two tuples, roughly."""


class DictionarySearch:
    """One search. `run` fills `result` while it lasts."""

    def __init__(self, automaton: Automaton, request: Request, result: Result) -> None:
        self.automaton, self.request, self.result = automaton, request, result
        start = machine.initial(automaton)
        self._before: dict[State, State | None] = {start: None}
        self._edges: list[tuple[State, State]] | None = [] if request.livelock is not False else None
        self._rests: set[State] = set()
        self._ends = 0

    def run(self) -> Problem | None:
        """Search until the end, a limit or the first problem."""
        result, request = self.result, self.request
        frontier = list(self._before)
        result.transitions = 0
        while frontier:
            result.states = len(self._before)
            result.frontier = len(frontier)
            result.memory_bytes = STATE_BYTES * (result.states + len(frontier))
            if result.depth and request.progress is not None:
                request.progress(result)
            if result.depth and request.is_full(result):
                return None
            frontier_or_problem = self._level(frontier)
            if isinstance(frontier_or_problem, Problem):
                return frontier_or_problem
            frontier = frontier_or_problem
            result.depth += bool(frontier)
        result.frontier = 0
        result.verdict = Verdict.PROVED
        return self._livelock()

    def _level(self, frontier: list[State]) -> list[State] | Problem:
        following: list[State] = []
        failing: State | None = None
        for state in frontier:
            if self._fails(state):
                return Problem(ProblemKind.ASSERTION, self._path(state))
            moved = False
            for _, _, real in machine.successors(self.automaton, state):
                moved = True
                after = machine.canonical(self.automaton, real)
                self._count(state, after)
                if after not in self._before:
                    self._before[after] = state
                    following.append(after)
                    if failing is None and self._fails(after):
                        failing = after
            if self.automaton.plain and self.request.races:
                if self.automaton.buffered:
                    raise PlainAccess
                if machine.race(self.automaton, state) is not None:
                    return Problem(ProblemKind.DATA_RACE, self._path(state))
            if not moved:
                self._rests.add(state)
                if (what := machine.judge(self.automaton, state)) == machine.DEADLOCK:
                    return Problem(ProblemKind.DEADLOCK, self._path(state))
                self._end(state, what)
        return following if failing is None else Problem(ProblemKind.ASSERTION, self._path(failing))

    def _count(self, state: State, after: State) -> None:
        assert self.result.transitions is not None
        self.result.transitions += 1
        if self._edges is not None:
            self._edges.append((state, after))
            if not self.request.livelock_wanted(len(self._before)):
                self._edges = None

    def _end(self, state: State, what: str) -> None:
        if what == machine.ENDED:
            self._ends += 1
            if self.request.visit is not None:
                visit_end(self.automaton, state, self.request.visit)

    def _fails(self, state: State) -> bool:
        automaton = self.automaton
        return any(automaton.locals[automaton.group_of[thread]][local].fails for thread, local in enumerate(state[0]))

    def _livelock(self) -> Problem | None:
        if self._edges is None:
            return None
        if not self._ends:
            self.result.notes.append(NO_END)
            return None
        sources: dict[State, list[State]] = {}
        for state, after in self._edges:
            sources.setdefault(after, []).append(state)
        good, todo = set(self._rests), list(self._rests)
        while todo:
            for state in sources.get(todo.pop(), ()):
                if state not in good:
                    good.add(state)
                    todo.append(state)
        for state in self._before:
            if state not in good:
                return Problem(ProblemKind.LIVELOCK, self._path(state))
        return None

    def _path(self, state: State) -> tuple[State, ...]:
        path = [state]
        while (before := self._before[path[-1]]) is not None:
            path.append(before)
        return tuple(reversed(path))
