"""What a kvm-unit-tests image said and how it ended: its console and exit status, read into counts and one verdict.

Counterpart: kvm-unit-tests' lib/report.c (the lines), lib/x86/io.c (the exit through port 0xf4), scripts/vmm.bash
(`qemu_fixup_return_code`). The promise: a run whose console holds a FAIL, or that did not reach its own exit, is never
called PASS, whatever its status says.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

STATUS_PASS = (0 << 1) | 1
STATUS_SKIP = ((77 >> 1) << 1) | 1
"""`report_summary` returns 77 >> 1 where every test was skipped, and isa-debug-exit makes 77 of it again."""
STATUS_ABORT = (63 << 1) | 1
STATUS_TIMEOUT = 124
STATUS_TRIPLE_FAULT = 3
"""vtlkit's own status for a triple fault is also that of a guest that calls exit(1): see `_reached_its_exit`."""

_REPORT = re.compile(r"(?:^|(?<=[^A-Z]))(PASS|FAIL|XPASS|XFAIL|KFAIL|SKIP): (.*)$")
_SUMMARY = re.compile(r"SUMMARY: (\d+) tests(.*)$")
_SUMMARY_PART = re.compile(r"(\d+) (unexpected failures|known failures|expected failures|skipped)")
_DEATH = re.compile(r"(Unhandled (?:cpu )?exception.*|ABORT: .*|.*assert failed.*|.*triple fault.*)", re.IGNORECASE)
KVM_GAVE_UP = re.compile(r"KVM internal error.*")
"""How QEMU and vtlkit say that KVM cannot go on. QEMU then waits for its monitor, for ever."""
_QEMU_REFUSAL = re.compile(r"^qemu-system-x86_64: (?!.*warning:).*$", re.MULTILINE)


class Verdict(enum.Enum):
    """How one run ended."""

    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"
    CRASH = "CRASH"
    TIMEOUT = "TIMEOUT"
    ERROR = "ERROR"
    """The emulator refused to run the image: bad input, or it could not start at all."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of reported checks, by kind. `passed` includes those that are counted but not printed."""

    passed: int = 0
    failed: int = 0
    known_failures: int = 0
    expected_failures: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished run."""

    verdict: Verdict
    counts: Counts = field(default_factory=Counts)
    status: int = 0
    """Exit status of the process; negative: the number of the signal that killed it."""
    seconds: float = 0.0
    failures: Mapping[str, int] = field(default_factory=dict)
    """Names of the failed checks, as printed, and how often each failed: some images repeat one 100000 times."""
    detail: str = ""
    """One line that says why the verdict is neither PASS nor SKIP nor a plain FAIL."""


@dataclass(frozen=True, slots=True)
class Console:
    """What could be read from the console alone."""

    counts: Counts
    failures: Mapping[str, int]
    has_summary: bool
    last_words: str
    """The line in which the guest reports its own death (unhandled exception, abort, assertion), or nothing."""


def parse_console(text: str) -> Console:
    """Count report lines, reconcile them with the last SUMMARY, and find the guest's last words."""
    lines: dict[str, list[str]] = {kind: [] for kind in ("PASS", "FAIL", "XPASS", "XFAIL", "KFAIL", "SKIP")}
    summary: re.Match[str] | None = None
    last_words = ""
    for line in text.replace("\r", "").split("\n"):
        if report := _REPORT.search(line):
            lines[report[1]].append(report[2].strip())
        elif found := _SUMMARY.search(line):
            summary = found
        elif death := _DEATH.match(line.strip()):
            last_words = last_words or death[1].strip()
    printed = Counts(
        passed=len(lines["PASS"]),
        failed=len(lines["FAIL"]) + len(lines["XPASS"]),
        known_failures=len(lines["KFAIL"]),
        expected_failures=len(lines["XFAIL"]),
        skipped=len(lines["SKIP"]),
    )
    counts = printed if summary is None else _reconcile(printed, summary)
    return Console(counts, dict(Counter(lines["FAIL"] + lines["XPASS"])), summary is not None, last_words)


def _reconcile(printed: Counts, summary: re.Match[str]) -> Counts:
    """The larger of both sources, kind by kind.

    `report_passed` counts without printing, so the summary may know more; output of two CPUs may run together and
    hide a line; and an image that makes a second summary starts no new count.
    """
    parts = {kind: int(number) for number, kind in _SUMMARY_PART.findall(summary[2])}
    failed = max(printed.failed, parts.get("unexpected failures", 0))
    known = max(printed.known_failures, parts.get("known failures", 0))
    expected = max(printed.expected_failures, parts.get("expected failures", 0))
    skipped = max(printed.skipped, parts.get("skipped", 0))
    silent = int(summary[1]) - failed - known - expected - skipped
    return Counts(max(printed.passed, silent), failed, known, expected, skipped)


def judge(text: str, errors: str, status: int, seconds: float) -> Outcome:
    """Join console, standard error and exit status into one outcome."""
    console = parse_console(text)
    verdict, detail = _verdict(console, errors, status)
    return Outcome(verdict, console.counts, status, round(seconds, 2), console.failures, detail)


def _verdict(console: Console, errors: str, status: int) -> tuple[Verdict, str]:
    if gave_up := KVM_GAVE_UP.search(errors):
        return Verdict.CRASH, gave_up[0].strip()
    if status == STATUS_TIMEOUT:
        return Verdict.TIMEOUT, console.last_words
    if status < 0:
        return Verdict.CRASH, f"killed by signal {-status}"
    if status == STATUS_ABORT:
        return Verdict.CRASH, console.last_words or "the guest called abort()"
    if status % 2 == 0 or "Traceback (most recent call last)" in errors:
        return _no_debug_exit(console, errors, status)
    if status == STATUS_TRIPLE_FAULT and "triple fault" in errors.lower():
        return Verdict.CRASH, _last_line(errors)
    if console.counts.failed:
        return Verdict.FAIL, console.last_words
    if status == STATUS_SKIP:
        return Verdict.SKIP, ""
    if status == STATUS_PASS:
        if refusal := _QEMU_REFUSAL.search(errors):  # QEMU's own errors end with 1 as well
            return Verdict.ERROR, refusal[0].strip()
        return Verdict.PASS, ""
    return Verdict.FAIL, console.last_words or f"the guest ended with exit({status >> 1})"


def _no_debug_exit(console: Console, errors: str, status: int) -> tuple[Verdict, str]:
    """An even status never comes from isa-debug-exit: the machine went down on its own, or the emulator gave up."""
    if "Traceback (most recent call last)" in errors:
        return Verdict.CRASH, _last_line(errors)
    if status == 2:
        return Verdict.ERROR, _last_line(errors) or "bad input"
    if status == 0:
        return Verdict.CRASH, console.last_words or "reset or power-off before the test's own exit"
    return Verdict.CRASH, console.last_words or _last_line(errors) or f"status {status}"


def _last_line(text: str) -> str:
    stripped = text.strip()
    return stripped.splitlines()[-1].strip() if stripped else ""
