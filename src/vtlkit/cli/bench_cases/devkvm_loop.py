"""The rival: a C loop over the host's /dev/kvm, compiled when it is needed (devkvm_loop.c, beside this file).

How fast it is depends on the host: on hardware virtualisation an exit takes about a microsecond, on a kernel that does
without it may take many. The rows are reports and not promises.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from vtlkit.cli.info import KVM_DEVICE, describe_kvm, kvm_answers
from vtlkit.cli.measure import Unavailable

SOURCE: Final = Path(__file__).with_suffix(".c")
COMPILERS: Final = ("gcc", "cc", "clang")
_LIMIT_SECONDS: Final = 120


def seconds_per_exit(kind: str, exits: int) -> float:
    """Of `exits` exits, `cpuid` (handled in the kernel) or `out` (in the program).

    Raises:
        Unavailable: there is no usable KVM or no C compiler.
    """
    return measured(SOURCE, kind, str(exits))


def measured(source: Path, *arguments: str, options: tuple[str, ...] = ()) -> float:
    """Seconds, which a C program over /dev/kvm prints in nanoseconds. `options` are the compiler's.

    Raises:
        Unavailable: there is no usable KVM or no C compiler, or the program fails.
    """
    if not kvm_answers(KVM_DEVICE):
        raise Unavailable(describe_kvm(KVM_DEVICE))
    try:
        command = [built(source, *options), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        words = " ".join([source.stem, *arguments])
        raise Unavailable(f"{KVM_DEVICE} did not finish '{words}' in {_LIMIT_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(f"{KVM_DEVICE} cannot run the loop: {done.stderr.strip() or f'status {done.returncode}'}")
    return float(done.stdout) / 1e9


@cache
def built(source: Path, *options: str) -> str:
    """The path of the program, compiled once. Raises Unavailable where it cannot be."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise Unavailable("there is no C compiler to build the /dev/kvm loop with")
    directory = tempfile.TemporaryDirectory(prefix="vtlkit-bench-")
    _kept.append(directory)
    program = str(Path(directory.name) / source.stem)
    command = [compiler, "-O2", *options, "-I", str(SOURCE.parent), "-o", program, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"the /dev/kvm loop does not compile: {(done.stderr.splitlines() or [''])[0]}")
    return program


_kept: Final[list[tempfile.TemporaryDirectory[str]]] = []
"""Removed when the process ends."""
