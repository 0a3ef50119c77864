"""Ctrl-C and SIGTERM end a run cleanly, whatever the guest is doing; a reader that does not read cannot prevent it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.conformance import devkvm_here
from tests.integration.cli_rig import PATIENCE_SECONDS, Running, environment
from tests.integration.cli_rig import run as run_to_its_end

GUESTS = {
    "spins": ["bench", "--append", "spin"],
    "exits": ["bench", "--append", "portout 1000000000"],
    "sleeps": ["bench", "--cpus", "2", "--append", "pingpong 1000000000"],
    "many": ["bench", "--cpus", "4", "--append", "cpuidall 1000000000"],
}
PAGE_SIZE = 4096
MODES = {"deterministic": [], "realtime": ["--realtime"]}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guest", GUESTS)
def test_ctrl_c_is_a_clean_stop_with_status_130(guest: str, mode: str) -> None:
    with Running(*GUESTS[guest], *MODES[mode]) as running:
        running.wait_until_guest_runs()
        running.process.send_signal(signal.SIGINT)
        done = running.end()
    assert (done.status, done.console) == (130, b"")
    assert done.error_lines[0] == "vtlkit: interrupted, status 130"
    assert any(line.startswith("  exits") for line in done.error_lines)


@pytest.mark.parametrize("mode", MODES)
def test_sigterm_is_a_clean_stop_with_status_143(mode: str) -> None:
    with Running("bench", "--append", "spin", *MODES[mode]) as running:
        running.wait_until_guest_runs()
        running.process.send_signal(signal.SIGTERM)
        done = running.end()
    assert done.status == 143
    assert done.error_lines[0] == "vtlkit: interrupted, status 143"


def test_ctrl_c_in_a_guest_that_sleeps_for_ever_in_real_time() -> None:
    with Running("bench", "--append", "hlt", "--realtime") as running:
        running.wait_until_guest_runs()
        running.process.send_signal(signal.SIGINT)
        assert running.end().status == 130


def test_two_ctrl_cs_end_a_run_in_any_case() -> None:
    with Running("bench", "--append", "spin") as running:
        running.wait_until_guest_runs()
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        assert running.end().status == 130


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_that_does_not_read_cannot_keep_a_run_from_ending(mode: str) -> None:
    reader, writer = os.pipe()
    # One page, which counts as full from its first byte on.
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE_SIZE)
    try:
        with Running("demo", "--cpus", "2", *MODES[mode], stdout=writer) as running:
            while not available(reader):
                assert running.process.poll() is None, "the guest ended"
                time.sleep(0.01)
            running.process.send_signal(signal.SIGINT)
            assert running.end().status == 130
    finally:
        os.close(reader)
        os.close(writer)


_INTERRUPT_AT: dict[str, str] = {
    "import": "class Interrupting:\n"
    "    def find_spec(self, name, *_):\n"
    "        if name == 'typer': raise KeyboardInterrupt\n"
    "sys.meta_path.insert(0, Interrupting())\n",
    "set-up": "import vtlkit.cli.run as run\ndef interrupt(*_): raise KeyboardInterrupt\nrun.find_guest = interrupt\n",
}


@pytest.mark.parametrize("when", _INTERRUPT_AT)
def test_ctrl_c_before_the_guest_runs_is_one_line(when: str) -> None:
    code = f"import sys\n{_INTERRUPT_AT[when]}from vtlkit.cli.start import start\nsys.exit(start())"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "demo"],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr.decode().split("\n") == ["vtlkit: interrupted", ""]


# --- on /dev/kvm, where a vCPU's thread is inside the kernel ---------------------------------------------------------

BUSY: dict[str, list[str]] = {
    "one spins": ["bench", "--cpus", "2", "--append", "spin"],
    "both exit": ["bench", "--cpus", "2", "--append", "cpuidall 1000000000"],
    "both sleep and wake": ["bench", "--cpus", "2", "--append", "pingpong 1000000000"],
}
ATTEMPTS = 2
"""Which thread takes a signal is the kernel's choice each time; one that a vCPU's thread takes is lost."""


@pytest.fixture
def kvm() -> list[str]:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    return ["--engine", "kvm"]


@pytest.mark.parametrize("guest", BUSY)
def test_ctrl_c_on_kvm(guest: str, kvm: list[str]) -> None:
    for _ in range(ATTEMPTS):
        with Running(*BUSY[guest], *kvm) as running:
            running.wait_until_guest_runs()
            running.process.send_signal(signal.SIGINT)
            done = running.end()
        assert (done.status, done.console) == (130, b"")
        assert done.error_lines[0] == "vtlkit: interrupted, status 130"


@pytest.mark.parametrize("guest", ["one spins", "both exit"])
def test_a_timeout_on_kvm(guest: str, kvm: list[str]) -> None:
    for _ in range(ATTEMPTS):
        done = run_to_its_end(*BUSY[guest], *kvm, "--timeout", "0.2")
        assert (done.status, done.console) == (124, b"")
        assert done.error_lines[0] == "vtlkit run: the guest had not ended after 0.2 s"


def test_sigterm_on_kvm(kvm: list[str]) -> None:
    with Running(*BUSY["both exit"], *kvm) as running:
        running.wait_until_guest_runs()
        running.process.send_signal(signal.SIGTERM)
        assert running.end().status == 143


def test_threads_of_vcpus_leave_to_the_main_thread_what_is_for_the_process(kvm: list[str]) -> None:
    with Running(*BUSY["both exit"], *kvm) as running:
        running.wait_until_guest_runs()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while sum(_leaves_to_others(task) for task in _threads(running.process.pid)) < 2:
            assert time.monotonic() < deadline, "no two threads block SIGINT, SIGTERM and SIGALRM"
            time.sleep(0.01)
        assert not _leaves_to_others(_threads(running.process.pid)[0]), "nobody hears the process's signals"


def _threads(process: int) -> list[dict[str, str]]:
    """What /proc says of each thread of Python's, the main thread first; the kernel's workers for VMs are left out."""
    found = []
    for task in sorted(Path(f"/proc/{process}/task").iterdir(), key=lambda path: int(path.name)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = (task / "status").read_text().splitlines()
            found.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    return [each for each in found if not each["Name"].startswith("kvm-")]


def _leaves_to_others(thread: dict[str, str]) -> bool:
    blocked = int(thread["SigBlk"], 16)
    return all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM))


def available(descriptor: int) -> int:
    """Bytes that a pipe holds."""
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, "little")
