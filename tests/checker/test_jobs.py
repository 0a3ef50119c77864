"""Checks side by side, and a check on several processes: the outcomes are those of one after the other."""

from __future__ import annotations

import os

import pytest

from vtlkit.checker.check import Limits
from vtlkit.checker.graphs import parallel, search
from vtlkit.checker.result import Verdict
from vtlkit.cli import check_runs
from vtlkit.cli.check_runs import Watcher, run_jobs
from vtlkit.cli.check_words import Wish, jobs_for


class Counting(Watcher):
    """How often each check was heard of."""

    def __init__(self) -> None:
        self.heard: dict[str, int] = {}

    def known(self, outcome: check_runs.Outcome) -> None:
        self.heard[outcome.job.title] = self.heard.get(outcome.job.title, 0) + 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_outcomes_do_not_depend_on_the_number_of_processes(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_runs, "QUICK_SECONDS", 0.001)
    monkeypatch.setattr(search, "PAYS_AFTER", 20)
    monkeypatch.setattr(parallel, "_SPLIT_EVERY", 10)
    jobs = [job for name in ("casrot", "binc", "peterson", "casw") for job in jobs_for(name, {}, Wish())]
    watcher = Counting()
    outcomes, interrupted = run_jobs(jobs, Limits(), watcher, processes)
    assert not interrupted
    assert [outcome.job for outcome in outcomes] == jobs
    results = [outcome.result for outcome in outcomes]
    assert all(outcome.ended for outcome in outcomes)
    assert {result.verdict for result in results if result is not None} == {Verdict.PROVED}
    counts = [result.executions for result in results if result is not None]
    assert counts == [144] * 3 + [36] * 3 + [4, 22, 22] + [66] * 3
    assert set(watcher.heard) == {"casrot", "binc", "peterson", "casw"}
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
