"""What a user waits for and pays for: `vtlkit run` as a process of its own, from its start to its end."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from typing import Final

EXIT_STATUS: Final = 1
"""bench.elf's `exit` writes 0 to the debug exit port."""
_MEASURED: Final = """
import sys
from pathlib import Path
from vtlkit.cli.main import main
status = main(sys.argv[1:])
print(Path("/proc/self/status").read_text(), file=sys.stderr)
sys.exit(status)
"""
"""`vtlkit` that says at its end what it occupied. The parent cannot: what wait4 reports includes its own peak."""


def start_and_exit() -> float:
    """Seconds of a run whose guest ends it at once."""
    begin = time.perf_counter()
    done = _run(["-m", "vtlkit"], ["run", "bench", "--append", "exit"])
    seconds = time.perf_counter() - begin
    if done.returncode != EXIT_STATUS:
        raise RuntimeError(f"vtlkit run bench --append exit: status {done.returncode}: {done.stderr}")
    return seconds


def resident_megabytes() -> float:
    """Megabytes (10^6) that a run of the demonstration guest with 4 VPs, each with 2 VTLs, occupies at most.

    Guest RAM counts as far as the guest touched it.
    """
    done = _run(["-c", _MEASURED], ["run", "demo", "--cpus", "4", "--quiet"])
    if done.returncode:
        raise RuntimeError(f"vtlkit run demo --cpus 4: status {done.returncode}: {done.stderr}")
    (peak,) = (line.split()[1] for line in done.stderr.splitlines() if line.startswith("VmHWM:"))
    return int(peak) * 1024 / 1e6


@cache
def _bytecode_directory() -> str:
    directory = tempfile.mkdtemp(prefix="vtlkit-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _run(program: Sequence[str], words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):
        # An installed package is compiled once, and not at each start.
        environment["PYTHONPYCACHEPREFIX"] = _bytecode_directory()
    return subprocess.run(
        [sys.executable, *program, *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
