"""The command line as a user has it: a process, its two outputs, its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
PATIENCE_SECONDS = 120
"""After which a test gives a process up: no promise on speed, as machines differ."""


@dataclass(frozen=True, slots=True)
class Done:
    """A process that has ended."""

    status: int
    console: bytes
    errors: str

    @property
    def error_lines(self) -> list[str]:
        return self.errors.splitlines()


def command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "vtlkit", *words]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), **(extra or {})}


def vtlkit(*words: str, cwd: Path | None = None) -> Done:
    """Run `vtlkit` to its end."""
    done = subprocess.run(
        command(words), env=environment(), cwd=cwd, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def run(*words: str, cwd: Path | None = None) -> Done:
    """Run `vtlkit run` to its end."""
    return vtlkit("run", *words, cwd=cwd)


def _default_signals() -> None:
    # A test run in the background has SIGINT ignored, and its children would have inherited that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A `vtlkit run` that has not ended. A context manager: the process is gone at its end."""

    def __init__(self, *words: str, stdout: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            command(["run", *words]),
            env=environment(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=_default_signals,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_until_guest_runs(self) -> None:
        """Until the program catches SIGALRM, as it does around the run and nowhere else."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._caught_signals() >> (signal.SIGALRM - 1) & 1:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the guest does not start"
            time.sleep(0.01)

    def _caught_signals(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return int(line.split()[1], 16)
        return 0

    def end(self) -> Done:
        """Wait for the end."""
        console, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return Done(self.process.returncode, console or b"", errors.decode())
