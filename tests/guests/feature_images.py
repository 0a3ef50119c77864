"""Builds the feature tests of guests/tests with the compiler of this machine, once for all workers."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parents[2] / "guests"
TOOLS: Final = ("gcc", "ld", "make")


def missing_tools() -> list[str]:
    """What is not there and building needs."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def names() -> list[str]:
    """The feature tests, sorted: one source file each."""
    return sorted(path.stem for path in (SOURCES / "tests").glob("*.c"))


def _make(*arguments: str) -> str:
    command = ["make", "-s", "--no-print-directory", "-C", str(SOURCES), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fingerprint() -> str:
    """Changes with the compiler and with every file that goes into an image."""
    digest = hashlib.sha256(_make("compiler").encode())
    for path in sorted((*SOURCES.glob("lib/*"), *SOURCES.glob("tests/**/*"), SOURCES / "Makefile")):
        if path.is_file():
            digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build(cache: Path) -> Path:
    """The directory with an image `NAME.elf` for each name; built under `cache` by whoever comes first."""
    built = cache / fingerprint()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.is_dir():
            for old in cache.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            unfinished = cache / "unfinished"
            unfinished.mkdir()
            _make("tests", f"-j{os.cpu_count() or 1}", f"OUT={unfinished}")
            unfinished.rename(built)
    return built
