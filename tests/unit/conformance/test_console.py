"""A console and an exit status become the right counts and the right verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.console import Counts, Verdict, judge, parse_console

GOOD = "enabling apic\r\nPASS: apic: self ipi\r\nPASS: tpr\r\nSKIP: x2apic not there\r\nSUMMARY: 3 tests, 1 skipped\r\n"
BAD = "PASS: a\r\nFAIL: msr: b\r\nFAIL: c\r\nSUMMARY: 3 tests, 2 unexpected failures\r\n"


def verdict(console: str, status: int, errors: str = "") -> Verdict:
    return judge(console, errors, status, 1.0).verdict


def test_report_lines_are_counted_by_kind() -> None:
    console = parse_console(
        "PASS: a\nFAIL: b\nXFAIL: c\nKFAIL: d\nXPASS: e\nSKIP: f\nINFO: PASS is near\nPASS:no space\n"
    )
    assert console.counts == Counts(passed=1, failed=2, known_failures=1, expected_failures=1, skipped=1)
    assert console.failures == {"b": 1, "e": 1}
    assert not console.has_summary


def test_a_check_that_fails_often_is_named_once() -> None:
    assert parse_console("FAIL: x\r\nFAIL: y\r\nFAIL: x\r\n").failures == {"x": 2, "y": 1}


def test_the_summary_knows_of_checks_that_print_nothing() -> None:
    console = parse_console("PASS: a\r\nSUMMARY: 100 tests, 1 unexpected failures, 2 known failures, 4 skipped\r\n")
    assert console.counts == Counts(passed=93, failed=1, known_failures=2, skipped=4)


def test_a_line_that_another_cpu_wrote_into_is_still_counted() -> None:
    assert parse_console("cpu 1 onlinePASS: ipi\n").counts.passed == 1
    assert parse_console("XXFAIL: no kind of report\n").counts == Counts()


def test_failed_lines_are_not_hidden_by_a_later_summary() -> None:
    assert parse_console("FAIL: x\nSUMMARY: 2 tests\n").counts.failed == 1


@pytest.mark.parametrize(
    ("console", "status", "errors", "expected"),
    [
        (GOOD, 1, "", Verdict.PASS),
        ("Dummy Hello World!\n", 1, "", Verdict.PASS),
        (GOOD, 1, "4 VPs, 1200 exits in 0.3 s\n", Verdict.PASS),
        (GOOD, 1, "qemu-system-x86_64: warning: TCG doesn't support x2apic\n", Verdict.PASS),
        (BAD, 3, "", Verdict.FAIL),
        (BAD, 1, "", Verdict.FAIL),
        ("", 3, "", Verdict.FAIL),
        ("", 7, "", Verdict.FAIL),
        ("SKIP: no hardware\nSUMMARY: 1 tests, 1 skipped\n", 77, "", Verdict.SKIP),
        (GOOD, 124, "", Verdict.TIMEOUT),
        ("Unhandled exception 13 #GP at ip 0000000000401234\r\n", 127, "", Verdict.CRASH),
        (GOOD, 0, "", Verdict.CRASH),
        (GOOD, -11, "", Verdict.CRASH),
        (GOOD, 130, "", Verdict.CRASH),
        ("", 3, "vtlkit: triple fault on VP 0, VTL 0 at rip 0x1000\n", Verdict.CRASH),
        ("", 2, "vtlkit: x.flat: not an image\n", Verdict.ERROR),
        ("", 1, "Traceback (most recent call last):\n  File x\nKeyError: 3\n", Verdict.CRASH),
        ("", 1, "qemu-system-x86_64: unable to find CPU model 'x'\n", Verdict.ERROR),
    ],
)
def test_verdict(console: str, status: int, errors: str, expected: Verdict) -> None:
    assert verdict(console, status, errors) is expected


def test_the_detail_says_how_it_died() -> None:
    crash = judge("PASS: a\r\nUnhandled exception 14 #PF at ip 0000000000401234\r\nmore\r\n", "", 127, 0.5)
    assert crash.detail == "Unhandled exception 14 #PF at ip 0000000000401234"
    assert judge("", "Traceback (most recent call last):\nKeyError: 3\n", 1, 0.5).detail == "KeyError: 3"
    assert judge("", "", -9, 0.5).detail == "killed by signal 9"
    assert judge("", "", 9, 0.5).detail == "the guest ended with exit(4)"


@given(st.text(), st.text(), st.integers(-64, 255))
def test_any_console_and_status_has_a_verdict(console: str, errors: str, status: int) -> None:
    outcome = judge(console, errors, status, 0.0)
    assert outcome.counts.failed >= sum(outcome.failures.values())
    if outcome.verdict is Verdict.PASS:
        assert status == 1
        assert not outcome.counts.failed
