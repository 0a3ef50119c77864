"""What a user waits for and pays for: `vtlkit run` as a process of its own, from its start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EXIT_STATUS: Final = 1
"""bench.elf's `exit` writes 0 to the debug exit port."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended. `resident`: its largest resident set in bytes, with the guest RAM that was touched."""

    status: int
    seconds: float
    resident: int


def run(words: Sequence[str]) -> Ended:
    """`vtlkit run` with these words; what it prints is thrown away."""
    command = [sys.executable, "-m", "vtlkit.cli.main", "run", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, wait_status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    return Ended(process.returncode, seconds, usage.ru_maxrss << 10)


def start_and_exit() -> float:
    """Seconds of a run whose guest ends it at once."""
    ended = run(["bench", "--append", "exit"])
    if ended.status != EXIT_STATUS:
        raise RuntimeError(f"vtlkit run bench --append exit: status {ended.status}")
    return ended.seconds


def resident_megabytes() -> float:
    """Megabytes (10^6) that a run of the demonstration guest with 4 VPs, each with 2 VTLs, occupies at most."""
    ended = run(["demo", "--cpus", "4"])
    if ended.status:
        raise RuntimeError(f"vtlkit run demo --cpus 4: status {ended.status}")
    return ended.resident / 1e6
