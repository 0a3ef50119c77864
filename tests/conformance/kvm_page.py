"""The table "On /dev/kvm" of docs/CONFORMANCE.md, and how it shares the page with the one before it.

The promise: each of the two tables is replaced by a run that has its columns, and kept as it is, date included, by one
that has not.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.conformance.console import Verdict
from tests.conformance.report import (
    HEADER,
    KVM_COLUMNS,
    Record,
    Row,
    complaints,
    escape,
    result,
    summaries,
    to_markdown,
)

OURS, RIVAL = KVM_COLUMNS
TITLE = "## On /dev/kvm"
INTRODUCTION = """\
Made by the same program, with `--kvm` beside the table above or `--kvm-only` without it (`CONFORMANCE_FLAGS` of
`make conformance`), and dated by itself. Both columns ran on the same /dev/kvm: vtlkit with `--engine kvm`, QEMU with
`-accel kvm`, its own devices and the kernel's interrupt controllers.

What a guest sees here is the kernel's doing, too, and differences of the kernel are the kernel's. So each test that
vtlkit does not pass says how it is "for QEMU too": "yes" is where QEMU fails or crashes on the same /dev/kvm, "no"
where it passes; a TIMEOUT there says neither. Whether for the same reason is told by the lists below the table, where
"(not in QEMU)" is a check that QEMU got to and passed. The seconds of a TIMEOUT are when the test was ended.
"""
_GOOD = (Verdict.PASS, Verdict.SKIP)
_FOR_QEMU = {
    Verdict.PASS: "no",
    Verdict.FAIL: "yes",
    Verdict.CRASH: "yes",
    Verdict.SKIP: "skipped there",
    Verdict.TIMEOUT: "TIMEOUT there",
    Verdict.ERROR: "not started there",
}


def compose(record: Record, old: str) -> str:
    """The page: what `record` has anew, the rest as it was in `old`."""
    first, _, second = old.partition(f"\n{TITLE}\n")
    if record.columns() or not record.columns(KVM_COLUMNS):
        first = to_markdown(record)
    if record.columns(KVM_COLUMNS):
        second = "\n".join(_section(record))
    first, second = (first or HEADER).rstrip("\n") + "\n", second.rstrip("\n") + "\n"
    return f"{first}\n{TITLE}\n{second}" if second.strip() else first


def for_qemu_too(row: Row) -> str:
    """Of a test that vtlkit does not pass: how it is for QEMU on the same kernel; else nothing."""
    ours, rival = row.outcomes.get(OURS), row.outcomes.get(RIVAL)
    if ours is None or rival is None or ours.verdict in _GOOD:
        return ""
    return _FOR_QEMU[rival.verdict]


def _section(record: Record) -> Iterable[str]:
    """What stands below the title."""
    columns = record.columns(KVM_COLUMNS)
    yield ""
    yield from INTRODUCTION.splitlines()
    yield ""
    yield f"- date: {record.date}"
    wanted = (*columns, "kernel", "time limit", "kvm-unit-tests", "host")
    yield from (f"- {what}: {record.versions[what]}" for what in wanted if what in record.versions)
    yield ""
    yield from summaries(record, columns)
    yield from _table(record, columns)
    alone = [row for row in record.rows if for_qemu_too(row) == "no"]
    if RIVAL in columns:
        yield "### Passed by QEMU on this /dev/kvm, not by vtlkit"
        yield ""
        yield from (f"- {_ended(row)}" for row in alone)
        yield from [] if alone else ["- none"]
        yield ""
    for column in columns:
        lines = [line for row in record.rows for line in complaints(row, column, _own(row) if column == OURS else ())]
        if lines:
            yield f"### Failed checks and early ends: {column}"
            yield ""
            yield from lines
            yield ""


def _ended(row: Row) -> str:
    ours = row.outcomes[OURS]
    return f"{row.name}: {ours.verdict.value}{f': {escape(ours.detail)}' if ours.detail else ''}"


def _own(row: Row) -> tuple[str, ...]:
    """Checks that vtlkit fails and QEMU does not, where QEMU came to the end of the test."""
    ours, rival = row.outcomes.get(OURS), row.outcomes.get(RIVAL)
    if ours is None or rival is None or rival.verdict not in (Verdict.PASS, Verdict.FAIL):
        return ()
    return tuple(name for name in ours.failures if name not in rival.failures)


def _table(record: Record, columns: list[str]) -> Iterable[str]:
    titles = ["test", "CPUs", *columns, *(f"{name} s" for name in columns), "for QEMU too"]
    yield f"| {' | '.join(titles)} |"
    yield f"| --- | ---: {'| --- ' * len(columns)}{'| ---: ' * len(columns)}| --- |"
    for row in record.rows:
        cells = [row.name, str(row.cpus), *(result(row.outcomes.get(name)) for name in columns)]
        cells += [f"{row.outcomes[name].seconds:.1f}" if name in row.outcomes else "" for name in columns]
        yield f"| {' | '.join(escape(cell) for cell in (*cells, for_qemu_too(row)))} |"
    yield ""
