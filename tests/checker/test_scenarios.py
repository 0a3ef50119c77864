"""Every scenario keeps its promise under ten thousand schedules, and on real threads."""

from __future__ import annotations

import os

import pytest

from vtlkit.checker.scenarios import Scenario, catalogue, run_seed, run_seeds
from vtlkit.host.api import RunnableHost
from vtlkit.host.sim import Deadlock
from vtlkit.host.threads import ThreadHost

SEEDS = int(os.environ.get("VTLKIT_STRESS_SEEDS", "10000"))
CHUNK = 1000
REAL_RUNS = 25


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
@pytest.mark.parametrize("name", catalogue())
def test_the_promise_holds_under_every_schedule_tried(name: str, first: int) -> None:
    count = min(CHUNK, SEEDS - first)
    assert run_seeds(catalogue()[name], range(first, first + count)) == count


@pytest.mark.parametrize("name", catalogue())
def test_the_promise_holds_on_threads(name: str) -> None:
    for _ in range(REAL_RUNS):
        catalogue()[name].body(ThreadHost())


def test_a_failure_names_the_scenario_and_the_token_that_replays_it() -> None:
    def broken(host: RunnableHost) -> None:
        raise AssertionError("lost")

    with pytest.raises(AssertionError, match="lost") as caught:
        run_seed(Scenario("x.broken", "", broken), 7)
    assert caught.value.__notes__ == ["replay: seed:7,instrument", "scenario: x.broken"]

    def stuck(host: RunnableHost) -> None:
        queue = host.wait_queue("nobody-wakes")
        host.spawn(lambda: _sleep(host, queue), "sleeper")
        host.run()

    with pytest.raises(Deadlock, match="nobody-wakes") as deadlock:
        run_seed(Scenario("x.stuck", "", stuck), 8)
    assert deadlock.value.__notes__ == ["replay: seed:8,instrument", "scenario: x.stuck"]


def _sleep(host: RunnableHost, queue: object) -> None:
    host.wait_event(queue, lambda: False)  # type: ignore[arg-type]
