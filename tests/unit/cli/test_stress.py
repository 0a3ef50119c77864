"""`vtlkit stress`: what it runs, what it says of a broken promise, how a failure is run again."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from vtlkit.checker import scenarios
from vtlkit.checker import stress as driver
from vtlkit.checker.kicks.world import World
from vtlkit.checker.scenarios import Scenario
from vtlkit.cli.main import main
from vtlkit.engine.devkvm import factory as devkvm_factory
from vtlkit.engine.devkvm.system import open_kvm
from vtlkit.host.api import RunnableHost
from vtlkit.kvm.vcpu import Vcpu


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
        (["--kicks", "5"], "--kicks needs --engine"),
        (["--cpus", "5", "--json"], "--cpus needs --engine"),
        (["--engine", "kvm", "--seeds", "5"], "--seeds is for the simulator: leave out --engine, or it"),
        (["--engine", "unicorn", "--replay", "seed:1"], "--replay is for the simulator"),
        (["--engine", "unicorn", "fine"], "no scenario fine with --engine: there are interrupt, kick-all, request, "),
        (["--engine", "bochs"], "'bochs' is not one of kvm, unicorn"),
        (["--engine", "kvm", "--kicks", "0"], "--kicks"),
        (["--engine", "kvm", "--cpus", "65"], "--cpus"),
        (["--engine", "kvm", "--patience", "0"], "'0' is no time"),
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


def test_kicks_on_threads_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["stress", "--engine", "unicorn", "--kicks", "30", "--cpus", "2"]
    assert main([*words, "signal"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["kicks", "in", "guest", "entering", "blocked", "outside", "lost", "seconds"]
    name, kicks, *found, lost, _seconds = row.split()
    assert (name, lost) == ("signal", "0")
    assert int(kicks) == sum(map(int, found)) >= 30

    assert main([*words, "wait", "request", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["engine"], said["kicks"], said["cpus"], said["interrupted"]) == ("unicorn", 30, 2, False)
    assert [each["name"] for each in said["scenarios"]] == ["wait", "request"]
    for each in said["scenarios"]:
        assert each["kicks"] == sum(each["found"].values()) >= 30
        assert (each["lost"], each["failure"]) == (0, None)


def test_a_lost_kick_is_told_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Vcpu, "kick", Vcpu.kick_running)
    words = ["stress", "--engine", "unicorn", "--cpus", "1", "--patience", "0.1", "interrupt"]
    assert main(words) == 1
    *_, row, complaint = capsys.readouterr().out.splitlines()
    assert row.split()[-2] != "0"
    assert complaint.startswith("    LOST: ")
    assert "of vCPU 0, which halts (blocked): it took a second kick" in complaint


def test_no_kvm_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devkvm_factory, "open_kvm", lambda _path: open_kvm("/nowhere/kvm"))
    assert main(["stress", "--engine", "kvm", "--kicks", "10"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vtlkit stress: --engine kvm: there is no /nowhere/kvm")
    assert output.err.count("\n") == 1


def test_ctrl_c_leaves_the_counts_so_far(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The signal comes while threads kick and run; nothing of them is left."""
    before = threading.enumerate()
    spawn = World.spawn

    def spawn_and_interrupt(world: World) -> None:
        spawn(world)
        signal.setitimer(signal.ITIMER_REAL, 0.2)

    monkeypatch.setattr(World, "spawn", spawn_and_interrupt)
    was = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        assert main(["stress", "--engine", "unicorn", "request", "signal"]) == 130
    finally:
        signal.signal(signal.SIGALRM, was)
    output = capsys.readouterr()
    assert output.err == "vtlkit stress: interrupted: the counts are of what was run\n"
    assert output.out.splitlines()[-1].split() == ["signal", "not", "run"]
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(60)
            assert not thread.is_alive()


def test_the_list_of_kicks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", "--engine", "kvm", "--list", "signal", "suspend"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["signal", "suspend"]
