"""`vtlkit stress`: what it runs, what it says of a broken promise, how a failure is run again."""

from __future__ import annotations

import json

import pytest

from vtlkit.checker import scenarios
from vtlkit.checker import stress as driver
from vtlkit.checker.scenarios import Scenario
from vtlkit.cli.main import main
from vtlkit.host.api import RunnableHost


def lost_at_times(host: RunnableHost) -> None:
    """A wake-up without the second look: some seeds lose it."""
    queue, flag = host.wait_queue("sleeper"), host.cell(False, "flag")

    def sleeper() -> None:
        if not flag.load():
            queue.prepare()
            host.schedule()
            queue.finish()

    def waker() -> None:
        flag.store(True)
        queue.wake()

    host.spawn(sleeper, "sleeper")
    host.spawn(waker, "waker")
    host.run()


BROKEN = Scenario("broken.sleep", "a sleeper that looks too early", lost_at_times)
FINE = Scenario("fine.nothing", "nothing happens", lambda host: None)


@pytest.fixture
def own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (scenarios, driver):
        monkeypatch.setattr(module, "catalogue", lambda: {each.name: each for each in (BROKEN, FINE)})


@pytest.mark.usefixtures("own_catalogue")
def test_a_promise_that_holds_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "fine", "--seeds", "120", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.split() == ["fine.nothing", "120", "runs", "promise", "kept"]


@pytest.mark.usefixtures("own_catalogue")
def test_a_broken_promise_ends_with_1_and_its_token_breaks_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "--seeds", "200", "--jobs", "1", "--json"]) == 1
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["scenarios"]}
    assert found["fine.nothing"] == {"name": "fine.nothing", "runs": 200, "failure": None}
    failure = found["broken.sleep"]["failure"]
    assert "sleeper" in failure["error"]
    assert not any(driver.run_chunk("broken.sleep", seed, 1).failure for seed in range(failure["seed"]))

    assert main(["stress", "broken.sleep", "--seeds", "200", "--jobs", "1"]) == 1
    text = capsys.readouterr().out
    assert f"BROKEN by seed {failure['seed']}" in text
    assert f"vtlkit stress broken.sleep --replay {failure['token']}" in text

    assert main(["stress", "broken.sleep", "--replay", failure["token"]]) == 1
    assert "Deadlock" in capsys.readouterr().err


@pytest.mark.usefixtures("own_catalogue")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nothing"], "no scenario nothing: there are broken.sleep, fine.nothing"),
        (["--replay", "seed:1"], "--replay takes one scenario"),
        (["fine", "--replay", "7"], "not a replay token: '7'"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_bad_input_is_one_line(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", *words]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("own_catalogue")
def test_the_list_says_what_each_promises(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "broken.sleep  a sleeper that looks too early",
        "fine.nothing  nothing happens",
    ]


def test_processes_share_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "wait.halt", "--seeds", "120", "--first", "5", "--jobs", "2"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["wait.halt", "120"]
