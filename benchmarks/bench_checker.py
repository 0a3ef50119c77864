"""`vtlkit check` against SPIN: one proof from a command to its answer, as whole processes.

SPIN needs three: it writes a verifier, a compiler makes a program of that, and the program runs. Its models are not
part of this project: VTLKIT_SPIN_MODELS names a directory with kvm_block.pml, tlb_inhibit.pml and kick_all.pml, whose
threads beside the first are counted by -DW, -DF and -DN. Two models of one protocol have steps of their own, so numbers
of states differ; what is compared is how long somebody waits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from vtlkit.cli.measure import Case, Unavailable

MODELS: Final = "VTLKIT_SPIN_MODELS"
THREADS: Final = range(2, 6)
_PROTOCOLS: Final = Path(__file__).with_name("spin_protocols.py")
_COUNTED_BY: Final = {"kvm_block": "W", "tlb_inhibit": "F", "kick_all": "N"}
_SHALLOW: Final = ("-m10000", "-w20")
_DEEP: Final = ("-m2000000", "-w24")
"""Options of SPIN's verifier, and those for its two large state spaces."""


def cases() -> list[Case]:
    """Three protocols with 2 to 5 threads each."""
    return [
        Case(
            f"check: {name}, {threads} threads",
            partial(check_seconds, name, threads),
            "SPIN",
            partial(spin_seconds, name, threads),
        )
        for name in _COUNTED_BY
        for threads in THREADS
    ]


def check_seconds(name: str, threads: int) -> float:
    """Of `vtlkit check`, from its start to its end."""
    words = ["-m", "vtlkit", "check", f"{_PROTOCOLS}::{name}", "--threads", str(threads), "--model", "sc"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return _timed(lambda: _done([sys.executable, *words], env=environment))


def spin_seconds(name: str, threads: int) -> float:
    """Of SPIN, the compiler and the verifier together. Raises Unavailable."""
    model = _model(name)
    with tempfile.TemporaryDirectory(prefix="vtlkit-spin-") as directory:
        return _timed(lambda: _spin(model, f"-D{_COUNTED_BY[name]}={threads - 1}", threads, Path(directory)))


def _model(name: str) -> Path:
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no {tool}: install Debian's packages spin and gcc")
    directory = os.environ.get(MODELS)
    if not directory:
        raise Unavailable(f"no models for SPIN: {MODELS}=directory names them")
    model = Path(directory).resolve() / f"{name}.pml"
    if not model.is_file():
        raise Unavailable(f"there is no {model}")
    return model


def _spin(model: Path, size: str, threads: int, directory: Path) -> None:
    limits = _DEEP if threads == THREADS[-1] and model.stem != "kvm_block" else _SHALLOW
    _done(["spin", "-a", size, str(model)], cwd=directory)
    _done(["gcc", "-O2", "-DSAFETY", "-DVECTORSZ=4096", "-DMEMLIM=8192", "-o", "pan", "pan.c"], cwd=directory)
    told = _done([str(directory / "pan"), *limits], cwd=directory)
    if "errors: 0" not in told or "truncated" in told:
        raise RuntimeError(f"{model.name} {size} is not proved: {told}")


def _done(words: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Standard output of a process that ended well."""
    process = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}: {process.stdout}{process.stderr}")
    return process.stdout


def _timed(body: Callable[[], object]) -> float:
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin
