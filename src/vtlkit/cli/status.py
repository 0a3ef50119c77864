"""Exit statuses of the `vtlkit` program, and what it says when it cannot do as asked.

A guest that writes v to isa-debug-exit ends the run with (v << 1) | 1, as on QEMU. Statuses of ours that are odd are
those that a shell's user expects: 3 for a triple fault, 128 + the signal's number for a signal.
"""

from __future__ import annotations

import enum
import sys
import traceback


class Status(enum.IntEnum):
    """What `vtlkit` ends with, besides what guests choose."""

    OK = 0
    BAD_INPUT = 2
    TRIPLE_FAULT = 3
    BUG = 70
    """EX_SOFTWARE of sysexits.h."""
    OUTPUT_FAILED = 74
    """EX_IOERR."""
    TIMEOUT = 124
    """As coreutils' timeout."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


class BadInput(Exception):
    """What the user gave cannot be used. The text is one line: what is wrong, and what to do about it."""

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command


def complain(command: str, message: str) -> None:
    """One line on standard error, whatever `message` holds: a file name may contain line breaks."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)


def report_bug(error: BaseException, reproduce: str = "") -> None:
    """The traceback of an error that is vtlkit's own, and what the user can do with it."""
    traceback.print_exception(error, file=sys.stderr)
    hint = f" ({reproduce})" if reproduce else ""
    print(
        f"vtlkit: internal error, not yours: please report it with the command line and the guest{hint}",
        file=sys.stderr,
    )
