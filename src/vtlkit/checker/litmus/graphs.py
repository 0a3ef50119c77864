"""A litmus test as a program for the search over execution graphs: SC, TSO and RC11.

What Linux's primitives become is in docs/design/litmus.md. RC11 is a model of the language: what it says of Linux code
is that of the nearest C11 program.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from vtlkit.checker.graphs.report import Execution, Verdict
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.litmus.interpreter import Run
from vtlkit.checker.litmus.judge import Columns, Outcome
from vtlkit.checker.litmus.primitives import Does, Mark
from vtlkit.checker.litmus.requests import Barrier, Ended, Fault, Load, Locking, Modify, Store, Tagged
from vtlkit.checker.litmus.syntax import Address, LitmusError, LitmusTest, Place, Register, Scalar
from vtlkit.checker.ops import (
    NO_WRITE,
    Await,
    Failure,
    Fence,
    Op,
    Order,
    Read,
    Rmw,
    Value,
    Write,
    compare_and_swap,
    lock,
    unlock,
)
from vtlkit.checker.program import Thread, Threads

EXECUTIONS_LIMIT: Final = 1_000_000
"""Beyond that a test is not small."""

_FENCES: Final = {
    "mb": Order.SEQ_CST,
    "rmb": Order.ACQUIRE,
    "wmb": Order.RELEASE,
    "before-atomic": Order.SEQ_CST,
    "after-atomic": Order.SEQ_CST,
    "after-spinlock": Order.SEQ_CST,
    "after-unlock-lock": Order.SEQ_CST,
}
_ORDERS: Final = {
    Mark.ONCE: Order.RELAXED,
    Mark.NORETURN: Order.RELAXED,
    Mark.ACQUIRE: Order.ACQUIRE,
    Mark.CONSUME: Order.ACQUIRE,
    Mark.RELEASE: Order.RELEASE,
}

Script = Generator[Op, Value, Tagged]


def explore_test(test: LitmusTest, model: str) -> Outcome:
    """The final states under `model` ("sc", "tso" or "rc11"), and whether plain accesses race.

    Raises LitmusError for a test that does what no program may do, that has grace periods where the model has none, or
    that is too large.
    """
    outcome = Outcome(model, test.observed)
    # A race ends a search, so states are found with plain accesses that cannot race.
    states = _Translation(test, model, Order.RELAXED)
    found = explore(
        states.program,
        model,
        visit=lambda execution: outcome.add(test, _final_state(test, execution), lambda: _columns(test, execution)),
        limit=EXECUTIONS_LIMIT,
    )
    if states.error is not None:
        raise states.error
    if found.verdict is Verdict.FAILS:
        line, _, text = found.text.partition(" ")
        raise LitmusError(int(line), text)
    if found.verdict is Verdict.INCOMPLETE:
        raise LitmusError(0, f"more than {EXECUTIONS_LIMIT} executions: too many for --model {model}")
    if states.has_plain and explore(_Translation(test, model, Order.PLAIN).program, model).verdict is Verdict.RACES:
        outcome.flags.add("data-race")
    return outcome


def _final_state(test: LitmusTest, execution: Execution) -> dict[Place, Scalar]:
    memory, state = execution.memory, dict[Place, Scalar]()
    for place in test.observed:
        if isinstance(place, Register):
            registers = execution.results[place.thread]
            assert isinstance(registers, dict)
            state[place] = registers.get(place.name, 0)
        else:
            last = memory.get(place, test.initial.get(place, 0))
            assert isinstance(last, int | Address)
            state[place] = last
    return state


def _columns(test: LitmusTest, execution: Execution) -> Columns:
    columns: list[list[str]] = [[] for _ in test.threads]
    for step in execution.steps():
        columns[step.thread].append(step.text)
    return tuple(tuple(column) for column in columns)


class _Translation:
    """A test's threads as generators of operations. `plain` is the order of plain accesses."""

    def __init__(self, test: LitmusTest, model: str, plain: Order) -> None:
        self._test = test
        self._model = model
        self._orders = {**_ORDERS, Mark.PLAIN: plain}
        self.has_plain = False
        """Whether a plain access was met."""
        self.error: LitmusError | None = None
        names = [f"P{number}" for number in range(len(test.threads))]
        threads = [self._thread(number) for number in range(len(test.threads))]
        self.program = Threads(*threads, initial=dict(test.initial.items()), names=names)

    def _thread(self, number: int) -> Thread:
        def thread() -> Generator[Op, Value, dict[str, Scalar]]:
            run = Run(self._test, number)
            steps = run.steps()
            inside: dict[Address | None, int] = {}
            try:
                request = next(steps)
                while not isinstance(request, Fault):
                    try:
                        answer = yield from self._perform(request, number, inside)
                    except Ended as end:
                        request = steps.throw(end)
                    else:
                        request = steps.send(answer)
                yield Failure(f"{request.line} P{number}: {request.text}")
            except StopIteration:
                pass
            return {name: tagged.value for name, tagged in run.registers.items()}

        return thread

    def _perform(
        self,
        request: Load | Store | Modify | Locking | Barrier,
        thread: int,
        inside: dict[Address | None, int],
    ) -> Script:
        match request:
            case Load(at, mark, _, _):
                self.has_plain |= mark is Mark.PLAIN
                return _answer((yield Read(at, self._orders[mark])))
            case Store(at, value, mark, _, _):
                self.has_plain |= mark is Mark.PLAIN
                yield Write(at, value, self._orders[mark])
            case Modify():
                return (yield from self._modify(request))
            case Locking(does, at, _, _):
                return (yield from _locking(does, at))
            case Barrier():
                yield from self._barrier(request, thread, inside)
        return Tagged(0)

    def _modify(self, request: Modify) -> Script:
        def update(old: Value) -> Value:
            assert isinstance(old, int | Address)
            try:
                new = request.update(old)
            except Ended:
                return NO_WRITE  # It is asked again below, where the thread can be told.
            return NO_WRITE if new is None else new

        if request.full:
            yield Fence(Order.SEQ_CST)
        old = _answer((yield Rmw(request.at, update, self._orders[request.mark])))
        if request.update(old.value) is not None and request.full:
            yield Fence(Order.SEQ_CST)
        return old

    def _barrier(self, request: Barrier, thread: int, inside: dict[Address | None, int]) -> Generator[Op, Value, None]:
        fence, domain = request.fence, request.at
        if fence in _FENCES:
            yield Fence(_FENCES[fence])
        elif fence in ("sync-rcu", "sync-srcu"):
            if self._model != "sc":
                raise LitmusError(request.line, f"--model {self._model} has no grace periods: use lkmm or sc")
            for other in range(len(self._test.threads)):
                yield from _wait_for_reader(("readers", domain, other))
        elif fence != "barrier" and self._model == "sc":
            depth = inside.get(domain, 0)
            inside[domain] = depth + (1 if fence in ("rcu-lock", "srcu-lock") else -1)
            if not depth or not inside[domain]:
                count = inside.get(_COUNT, 0) + 1
                inside[_COUNT] = count
                yield Write(("readers", domain, thread), 2 * count + bool(inside[domain]), Order.RELEASE)


_COUNT: Final = Address("", -1)
"""Where a thread counts the changes of its readers' words."""


def _wait_for_reader(word: tuple[str, Address | None, int]) -> Generator[Op, Value, None]:
    """Until a thread has left its critical section: inside, the word is odd, and no value comes twice."""
    seen = yield Read(word, Order.ACQUIRE)
    assert isinstance(seen, int)
    if seen % 2:
        yield Await(word, lambda now: now != seen)


def _locking(does: Does, at: Address) -> Script:
    match does:
        case Does.LOCK:
            yield lock(at)
            return Tagged(1)
        case Does.UNLOCK:
            yield unlock(at)
            return Tagged(0)
        case Does.TRYLOCK:
            held = yield compare_and_swap(at, 0, 1, Order.ACQUIRE)
            return Tagged(int(held == 0))
    return Tagged(int((yield Read(at)) != 0))


def _answer(value: Value) -> Tagged:
    assert isinstance(value, int | Address)
    return Tagged(value)
