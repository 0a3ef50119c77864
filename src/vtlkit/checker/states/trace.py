"""From the states of a run to its steps in words: the run is made again, with real threads."""

from __future__ import annotations

from vtlkit.checker import phrases
from vtlkit.checker.ops import NO_WRITE, Assume, Await, Failure, Fence, Read, Rmw, Value, Write
from vtlkit.checker.result import Counterexample, ProblemKind, Step, Waiting
from vtlkit.checker.states import machine
from vtlkit.checker.states.automaton import FLUSH, WRITES, Automaton, KnowsSleepers, Local, Node
from vtlkit.checker.states.machine import State
from vtlkit.checker.states.outcome import Problem

Buffer = tuple[tuple[int, int], ...]


def counterexample(automaton: Automaton, problem: Problem) -> Counterexample:
    """The problem's run, told step by step."""
    run = _Run(automaton)
    for state in problem.path[1:]:
        run.go_to(state)
    kind: ProblemKind = problem.kind
    waiting: tuple[Waiting, ...] = ()
    if kind is ProblemKind.ASSERTION:
        text = run.fail()
    elif kind is ProblemKind.DATA_RACE:
        text = run.race()
    elif kind is ProblemKind.LIVELOCK:
        text = "from here on steps are taken for ever, and no end can be reached: " + run.still_running()
    else:
        kind, waiting, text = run.waiting()
    return Counterexample(kind, text, tuple(run.steps), waiting, shortest=True)


class _Run:
    """A run as far as it has come."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self.names = automaton.program.names
        self.state = machine.initial(automaton)
        self.steps: list[Step] = []
        self.last_step = [-1] * len(automaton.group_of)
        self.writes: dict[int, list[int]] = {}
        """Word -> steps that wrote it, in memory."""
        self.buffered_by: list[list[int]] = [[] for _ in automaton.group_of]
        """For each entry of a thread's store buffer the step that made it."""
        for thread, group in enumerate(automaton.group_of):
            self._fold(thread, automaton.roots[group], (), False)

    def go_to(self, target: State) -> None:
        """Take a step to a state that nobody can tell from this one."""
        automaton = self.automaton
        for thread, way, state in machine.successors(automaton, self.state):
            if machine.canonical(automaton, state) == target:
                self._take(thread, way, state)
                return
        raise AssertionError("no step leads there")

    def fail(self) -> str:
        """The failure at the end."""
        for thread, local in self._threads():
            if isinstance(local.node.op, Failure):
                self._add(Step(thread, f"fails: {local.node.op.text}", self._place(thread, local.node)))
                return local.node.op.text
        raise AssertionError("no failure")

    def race(self) -> str:
        """The two accesses that are next."""
        found = machine.race(self.automaton, self.state)
        assert found is not None
        parts = []
        for thread in found:
            local = self._local(thread)
            word, kind = machine.access(self.automaton, self.state, thread)
            location = self.automaton.words.locations[word]
            verb = "writes" if kind & WRITES else "reads"
            place = self._place(thread, local.node)
            parts.append(f"{self.names[thread]} {verb} {location}{f' at {place}' if place else ''}")
            self._add(Step(thread, f"{verb} {location} next", place, location))
        return f"data race: {', '.join(parts)}"

    def still_running(self) -> str:
        """Who has not ended."""
        parts = []
        for thread, local in self._threads():
            if not local.ended:
                place = self._place(thread, local.node)
                parts.append(f"{self.names[thread]}{f' at {place}' if place else ''}")
        return ", ".join(parts)

    def waiting(self) -> tuple[ProblemKind, tuple[Waiting, ...], str]:
        """Who waits for ever, and whether a wake-up was lost."""
        kind = ProblemKind.DEADLOCK
        automaton = self.automaton
        memory = machine.memory(automaton, self.state)
        found, parts = [], []
        for thread, local in self._threads():
            if local.ended or local.may_sleep:
                continue
            op = local.node.op
            assert isinstance(op, Await | Rmw)
            value = memory[op.location]
            why = f"{self.names[thread]} waits on {op.location}, which is {value!r} and stays so"
            program = automaton.program
            if isinstance(program, KnowsSleepers) and program.sleeper_condition_holds(
                thread, local.node.results, memory
            ):
                kind = ProblemKind.LOST_WAKE_UP
                why += ", though what it waits for has come about"
            word = automaton.words.word(op.location)
            place = self._place(thread, local.node)
            missed = tuple(
                [
                    step
                    for step in self.writes.get(word, ())
                    if step > self.last_step[thread] and self.steps[step].thread != thread
                ]
            )
            found.append(Waiting(thread, op.location, value, place, why, missed))
            parts.append(why)
        return kind, tuple(found), "; ".join(parts)

    def _threads(self) -> list[tuple[int, Local]]:
        return [(thread, self._local(thread)) for thread in range(len(self.state[0]))]

    def _local(self, thread: int) -> Local:
        return self.automaton.locals[self.automaton.group_of[thread]][self.state[0][thread]]

    def _place(self, thread: int, node: Node) -> str:
        return self.automaton.program.place(thread, node.results)

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _fold(self, thread: int, node: Node, buffer: Buffer, draining: bool) -> None:
        """Tell what the thread does between two steps."""
        for passed, *_ in self.automaton.fold(self.automaton.group_of[thread], node, buffer, draining)[:-1]:
            op, place = passed.op, self._place(thread, passed)
            if isinstance(op, Fence):
                self._own(Step(thread, phrases.fence(op.order), place))
            elif isinstance(op, Write):
                text = phrases.buffers(op.location, op.value, op.order)
                step = Step(thread, text, place, op.location, written=op.value)
                self.buffered_by[thread].append(self._own(step))
            else:
                assert isinstance(op, Assume)

    def _own(self, step: Step) -> int:
        """A step of the thread itself, not of its store buffer."""
        self.last_step[step.thread] = index = self._add(step)
        return index

    def _take(self, thread: int, way: int, after: State) -> None:
        automaton = self.automaton
        group = automaton.group_of[thread]
        local = self._local(thread)
        before, self.state = self.state, after
        if way == FLUSH:
            word, number = local.buffer[0]
            location, value = automaton.words.locations[word], automaton.words.values[word][number]
            place = self.steps[self.buffered_by[thread].pop(0)].place
            what = phrases.hands_on(location, value)
            index = self._add(Step(thread, what, place, location, written=value, buffered=True))
            self.writes.setdefault(word, []).append(index)
            self._fold(thread, local.node, local.buffer[1:], local.draining)
            return
        result = self._perform(thread, local, before)
        self._fold(thread, automaton.child(group, local.node, result), local.buffer, False)

    def _perform(self, thread: int, local: Local, before: State) -> Value:
        """The thread's operation: its step, and its result."""
        words, op, place = self.automaton.words, local.node.op, self._place(thread, local.node)
        if isinstance(op, Fence):
            self._own(Step(thread, phrases.fence(op.order), place))
            return None
        if isinstance(op, Assume):
            return None
        assert isinstance(op, Read | Await | Rmw | Write)
        word = words.word(op.location)
        wrote = self.writes.setdefault(word, [])
        if isinstance(op, Write):
            text = phrases.writes(op.location, op.value, op.order)
            wrote.append(self._own(Step(thread, text, place, op.location, written=op.value)))
            return None
        if local.forwarded >= 0:
            held = [index for index, (other, _) in enumerate(local.buffer) if other == word]
            source: int | None = self.buffered_by[thread][held[-1]]
            old = words.values[word][local.forwarded]
        else:
            source = wrote[-1] if wrote else None
            old = words.values[word][machine.value_of(before, word)]
        if isinstance(op, Rmw) and (new := op.update(old)) is not NO_WRITE:
            step = Step(thread, phrases.changes(op, old, new), place, op.location, old, new, source)
            wrote.append(self._own(step))
            return old
        text = (phrases.finds if isinstance(op, Await) else phrases.reads)(op.location, old, op.order)
        self._own(Step(thread, text, place, op.location, old, source=source))
        return old
