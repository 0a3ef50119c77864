"""All executions of a litmus test under the Linux-kernel memory model."""

from __future__ import annotations

from functools import partial

from vtlkit.checker.litmus.judge import Columns, Outcome
from vtlkit.checker.litmus.lkmm.candidates import Candidate, candidates, combinations
from vtlkit.checker.litmus.lkmm.events import Kind
from vtlkit.checker.litmus.lkmm.model import Lkmm
from vtlkit.checker.litmus.lkmm.skeleton import Skeleton
from vtlkit.checker.litmus.lkmm.traces import all_traces
from vtlkit.checker.litmus.syntax import LitmusError, LitmusTest, Place, Register, Scalar, holds, places


def search(test: LitmusTest, model: type[Lkmm] = Lkmm) -> Outcome:
    """The final states of all candidates that the model allows, and its flags.

    Raises LitmusError for a test that does what no program may do (dereferences a number) or that is too large.
    """
    outcome = Outcome("lkmm", test.observed)
    # What a filter says of registers alone is known before rf and co.
    early = test.keep if test.keep is not None and all(isinstance(at, Register) for at in places(test.keep)) else None
    for skeleton in combinations(test, all_traces(test)):
        if early is not None and not holds(early, _registers(test, skeleton)):
            continue
        for candidate in candidates(skeleton):
            allowed = model(candidate)
            if allowed.broken:
                continue
            _refuse_faults(candidate)
            if outcome.add(test, _final_state(test, candidate), partial(_columns, candidate)):
                outcome.flags |= allowed.flags
    return outcome


def _refuse_faults(candidate: Candidate) -> None:
    for trace in candidate.skeleton.traces:
        if trace.fault is not None:
            raise LitmusError(trace.fault.line, f"P{trace.thread}: {trace.fault.text}")


def _registers(test: LitmusTest, skeleton: Skeleton) -> dict[Place, Scalar]:
    return {
        place: skeleton.traces[place.thread].registers.get(place.name, 0)
        for place in test.observed
        if isinstance(place, Register)
    }


def _final_state(test: LitmusTest, candidate: Candidate) -> dict[Place, Scalar]:
    state = _registers(test, candidate.skeleton)
    for place in test.observed:
        if isinstance(place, Register):
            continue
        if place in candidate.co:
            state[place] = candidate.value(candidate.co[place][-1])
        else:
            state[place] = test.initial.get(place, 0)
    return state


def _columns(candidate: Candidate) -> Columns:
    skeleton = candidate.skeleton
    columns: list[list[str]] = [[] for _ in skeleton.traces]
    for number, event in skeleton.numbered():
        text = str(event)
        source = candidate.rf.get(number)
        if source is not None and event.kind is not Kind.LOCK_READ:
            thread = skeleton.thread[source]
            text += f", {'initial value' if thread < 0 else f'of P{thread}'}"
        columns[skeleton.thread[number]].append(text)
    return tuple(tuple(column) for column in columns)
