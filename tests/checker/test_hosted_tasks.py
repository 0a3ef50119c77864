"""Tasks over the host API under check: what must not be taken for a loop, and what a timer promises."""

from __future__ import annotations

import pytest

from vtlkit.checker.check import MODELS, check
from vtlkit.checker.hosted import HostedProgram
from vtlkit.checker.result import ProblemKind, Result, Verdict
from vtlkit.host.api import Host


def checked(build: object, model: str) -> Result:
    return check(HostedProgram(build, model, rounds=2), model)  # type: ignore[arg-type]


def looks_twice_from_one_place(host: Host) -> None:
    """As a loop over two requests that looks at one bitmap for both: it sees nothing, and goes on."""
    bits, end = host.bitmap("bits"), host.cell(False, "end")

    def look() -> None:
        looks = [0, 0]
        for number in (0, 1):
            looks[number] = bits.load()
        assert looks != [0, 0] or not end.load(), "seen"

    def change() -> None:
        end.store(True)
        bits.set(2)

    host.spawn(look, "look")
    host.spawn(change, "change")


@pytest.mark.parametrize("model", MODELS)
def test_two_looks_from_one_place_are_no_endless_loop(model: str) -> None:
    found = checked(looks_twice_from_one_place, model).counterexample
    assert found is not None
    assert found.kind is ProblemKind.ASSERTION


def cancels(host: Host, *, waits: bool) -> None:
    """A callback marks a word; once the timer is cancelled nothing is to mark it any more."""
    mark = host.cell(0, "mark")
    timer = host.timer(lambda: mark.store(1), "timer")

    def task() -> None:
        timer.start(10)
        if waits:
            timer.cancel()
        mark.store(2)
        assert mark.load() == 2, "marked behind the cancellation"

    host.spawn(task, "task")


@pytest.mark.parametrize("model", MODELS)
def test_cancel_waits_for_a_callback_that_has_begun(model: str) -> None:
    assert checked(lambda host: cancels(host, waits=True), model).verdict is Verdict.PROVED
    assert checked(lambda host: cancels(host, waits=False), model).verdict is Verdict.COUNTEREXAMPLE


def cancels_itself(host: Host) -> None:
    fired = host.cell(0, "fired")

    def callback() -> None:
        timer.cancel()
        timer.start(20) if fired.fetch_add(1) == 0 else timer.cancel()

    timer = host.timer(callback, "timer")
    queue = host.wait_queue("queue")

    def task() -> None:
        timer.start(10)
        host.wait_event(queue, lambda: True)

    host.spawn(task, "task")


def test_a_callback_may_cancel_and_start_its_own_timer() -> None:
    assert checked(cancels_itself, "sc").verdict is Verdict.PROVED
