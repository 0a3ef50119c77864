"""The rival: QEMU's own translator (`-accel tcg`) on bench.elf, as a process of its own.

Its CPUID is a function call out of translated code, not an exit to a hypervisor: what it costs is the floor, and the
row is a report and not a promise. Timed by the difference of two lengths, so that QEMU's start-up cancels out.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Final

from vtlkit.cli.measure import Unavailable

PROGRAM: Final = "qemu-system-x86_64"
_LIMIT_SECONDS: Final = 120


def seconds(word: str, iterations: int) -> float:
    """What the whole process takes. Raises Unavailable where there is no QEMU, or it cannot run the guest."""
    from vtlkit import guests

    program = shutil.which(PROGRAM)
    if program is None:
        raise Unavailable(f"{PROGRAM} is not installed")
    command = [program, "-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-serial", "null", "-kernel", str(guests.path("bench")), "-append", f"{word} {iterations}"]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{PROGRAM} did not finish '{word}' in {_LIMIT_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(f"{PROGRAM} cannot run bench.elf: {(done.stderr.splitlines() or ['no word why'])[0]}")
    return time.perf_counter() - begin


def per_iteration(word: str, iterations: int) -> float:
    """Seconds that one turn of the loop takes."""
    short = seconds(word, 1)
    return (seconds(word, 1 + iterations) - short) / iterations
