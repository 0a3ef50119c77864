"""Run a built kvm-unit-tests checkout on vtlkit, beside QEMU's TCG if wanted, and write docs/CONFORMANCE.md from it.

Counterpart: kvm-unit-tests' run_tests.sh. Usage: `python -m tests.conformance.kvm_unit_tests --dir DIR`; see --help.
The program ends with 0 if every test was run and recorded, whatever the tests say (it measures, docs/LIMITS.md
explains), with 2 on bad input, with 130 on Ctrl-C, which records nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import platform
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.conformance import devkvm_here
from tests.conformance.console import Outcome, Verdict
from tests.conformance.emulators import Emulator, QemuKvm, QemuTcg, Vtlkit, commit_of, limit_seconds, run_test
from tests.conformance.kvm_page import compose
from tests.conformance.report import EMBEDDED_COLUMNS, KVM_COLUMNS, Record, Row, from_json, to_json
from tests.conformance.unittests_cfg import ConfigError, NotRun, PlannedTest, parse, plan


class BadInput(Exception):
    """The command line asks for something that cannot be done; the text is one clear line."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.kvm_unit_tests", description=__doc__)
    parser.add_argument(
        "--dir", type=Path, required=True, help="a kvm-unit-tests checkout, configured and built for x86"
    )
    parser.add_argument("--jobs", type=int, default=2, help="tests run at once (default 2)")
    parser.add_argument("--only", default="", help="names of the tests to run, separated by commas")
    parser.add_argument("--qemu", action="store_true", help="add a column for QEMU's TCG")
    parser.add_argument("--qemu-only", action="store_true", help="run only QEMU's TCG, as the reference for later")
    parser.add_argument("--reference", type=Path, metavar="JSON", help="take QEMU's column from an earlier --json file")
    parser.add_argument("--kvm", action="store_true", help='also make the table "On /dev/kvm": vtlkit and QEMU on it')
    parser.add_argument("--kvm-only", action="store_true", help="make that table alone; the other stays as it is")
    parser.add_argument(
        "--earlier",
        type=Path,
        action="append",
        default=[],
        metavar="JSON",
        help="take what an earlier run has of the columns run now, but for time limits below today's; repeatable",
    )
    parser.add_argument("--limit", type=int, metavar="SECONDS", help="no test gets more than this (default: its own)")
    parser.add_argument("--timeout-scale", type=float, default=1.0, help="multiply every time limit (default 1)")
    parser.add_argument("--run-option", action="append", default=[], help="one more word for `vtlkit run`; repeatable")
    parser.add_argument("--output", type=Path, help="write the Markdown page here; not done with --only")
    parser.add_argument("--json", type=Path, help="write the data here (default: conformance-out/results.json)")
    parser.add_argument("--logs", type=Path, default=Path("conformance-out"), help="directory of consoles and errors")
    return parser.parse_args(argv)


def select(directory: Path, only: str) -> tuple[list[PlannedTest], list[NotRun]]:
    """The tests to run. Raises BadInput where the checkout or a name is not what it should be."""
    config = directory / "x86" / "unittests.cfg"
    try:
        text = config.read_text()
    except OSError as error:
        raise BadInput(f"{config}: {error.strerror}; --dir must name a kvm-unit-tests checkout") from error
    try:
        tests, not_run = plan(directory, parse(text))
    except ConfigError as error:
        raise BadInput(str(error)) from error
    if not any(test.image.is_file() for test in tests):
        raise BadInput(f"{directory}/x86 has no built image: run ./configure && make there first")
    if only:
        wanted = [name.strip() for name in only.split(",") if name.strip()]
        by_name = {test.name: test for test in tests}
        reasons = {item.name: item.reason for item in not_run}
        for name in wanted:
            if name not in by_name:
                raise BadInput(f"no test '{name}' to run: {reasons.get(name, 'not in x86/unittests.cfg')}")
        return [by_name[name] for name in wanted], []
    return tests, not_run


def emulators_for(options: argparse.Namespace) -> list[Emulator]:
    """The columns to run now."""
    chosen: list[Emulator] = [] if options.kvm_only else _embedded(options)
    if options.kvm or options.kvm_only:
        reason = devkvm_here.why_not()
        if reason is None:
            chosen += _on_kvm(options)
        elif options.kvm_only:
            raise BadInput(f"--kvm-only: {reason}")
        else:
            print(f"conformance: --kvm does nothing here: {reason}", file=sys.stderr)
    return chosen


def _on_kvm(options: argparse.Namespace) -> list[Emulator]:
    chosen: list[Emulator] = [Vtlkit("vtlkit-kvm", ("--engine", "kvm", *options.run_option))]
    if (qemu := QemuKvm.find()) is None:
        print("conformance: no qemu-system-x86_64 that starts on /dev/kvm: no column for it", file=sys.stderr)
    else:
        chosen.append(qemu)
    return chosen


def _embedded(options: argparse.Namespace) -> list[Emulator]:
    chosen: list[Emulator] = []
    if not options.qemu_only:
        chosen.append(Vtlkit(extra=tuple(options.run_option)))
    if (options.qemu or options.qemu_only) and options.reference is None:
        qemu = QemuTcg.find()
        if qemu is None:
            raise BadInput("qemu-system-x86_64 is not on PATH: leave out --qemu, or install it")
        chosen.append(qemu)
    return chosen


Known = dict[tuple[str, str], Outcome]
"""What need not be run again, by test and column."""
OWN_LIMIT = "each test's own"
LIMIT = "time limit"
"""Among the versions of a record: what --limit was; of one that goes on from earlier ones, each of theirs too."""


def read_earlier(options: argparse.Namespace, tests: Sequence[PlannedTest], found: dict[str, str]) -> Known:
    """What --earlier files have of these tests; adds their limits to `found`. Raises BadInput for one that another
    program made."""
    limits = {test.name: limit_seconds(test, options.timeout_scale) for test in tests}
    known: Known = {}
    for path in options.earlier:
        try:
            record = from_json(path.read_text())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"--earlier {path}: not the data of an earlier run: {error}") from error
        used = [text for of in (found, record.versions) for text in of.get(LIMIT, OWN_LIMIT).split(", ")]
        found[LIMIT] = ", ".join(dict.fromkeys(used))
        for what in sorted(found.keys() & record.versions.keys() - {LIMIT}):
            if record.versions[what] != found[what]:
                raise BadInput(
                    f"--earlier {path}: its {what} is '{record.versions[what]}', not '{found[what]}': run anew"
                )
        for row in record.rows:
            for column, outcome in row.outcomes.items():
                short = outcome.verdict is Verdict.TIMEOUT and outcome.seconds < limits.get(row.name, 0)
                if column in found and not short and outcome.verdict is not Verdict.ERROR:
                    known[row.name, column] = outcome
    return known


def run_all(
    tests: Sequence[PlannedTest], emulators: Sequence[Emulator], options: argparse.Namespace, known: Known
) -> list[Row]:
    """Run every test on every emulator, but for what is known; one line on standard error as each one ends; rows in
    the order of `tests`."""
    options.logs.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, dict[str, Outcome]] = {
        test.name: {e.name: known[test.name, e.name] for e in emulators if (test.name, e.name) in known}
        for test in tests
    }
    total = sum(len(emulators) - len(of_test) for of_test in outcomes.values())
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=max(1, options.jobs)) as pool:
        running = {
            pool.submit(run_test, test, emulator, options.logs, options.timeout_scale, stop): (test, emulator)
            for test in tests
            for emulator in emulators
            if (test.name, emulator.name) not in known
        }
        try:
            for number, done in enumerate(as_completed(running), 1):
                test, emulator = running[done]
                outcome = outcomes[test.name][emulator.name] = done.result()
                print(_progress(number, total, emulator.name, test.name, outcome), file=sys.stderr, flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [Row.of(test, outcomes[test.name]) for test in tests]


def _progress(number: int, total: int, emulator: str, name: str, outcome: Outcome) -> str:
    counts = outcome.counts
    numbers = f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped"
    detail = f": {outcome.detail}" if outcome.detail else ""
    position = f"[{number:{len(str(total))}}/{total}]"
    return f"{position} {outcome.verdict.value:7} {emulator:10} {name}: {numbers}, {outcome.seconds:.1f} s{detail}"


def with_reference(rows: Sequence[Row], reference: Record) -> list[Row]:
    """Add QEMU's column from an earlier record."""
    known = {row.name: row.outcomes["qemu"] for row in reference.rows if "qemu" in row.outcomes}
    return [
        Row(row.name, row.file, row.cpus, row.arguments, row.unmapped, {**row.outcomes, "qemu": known[row.name]})
        if row.name in known
        else row
        for row in rows
    ]


def versions(directory: Path, emulators: Sequence[Emulator], reference: Record | None) -> dict[str, str]:
    """What produced the record."""
    found = {emulator.name: emulator.version() for emulator in emulators}
    if reference is not None:
        # The reference may have had its column from an earlier one.
        found["qemu"] = f"{reference.versions['qemu'].partition(', recorded')[0]}, recorded {reference.date}"
    if any(name in found for name in KVM_COLUMNS):
        found["kernel"] = f"{platform.system()} {platform.release()}, its KVM {devkvm_here.described()}"
    found["kvm-unit-tests"] = commit_of(directory).strip(" ()") or "unknown commit"
    found["host"] = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run, record, summarise."""
    options = arguments(argv)
    try:
        tests, not_run = select(options.dir, options.only)
        if options.limit is not None:
            if options.limit < 1:
                raise BadInput("--limit must be 1 second or more")
            tests = [dataclasses.replace(t, timeout_seconds=min(t.timeout_seconds, options.limit)) for t in tests]
        emulators = emulators_for(options)
        reference = None if options.reference is None else from_json(options.reference.read_text())
        found = versions(options.dir, emulators, reference)
        if options.limit is not None:
            found[LIMIT] = f"{options.limit} s"
        known = read_earlier(options, tests, found)
    except (BadInput, OSError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    try:
        rows = run_all(tests, emulators, options, known)
    except KeyboardInterrupt:
        print("conformance: interrupted; nothing was recorded", file=sys.stderr)
        return 130
    if reference is not None:
        rows = with_reference(rows, reference)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = Record(today, found, tuple(rows), tuple(not_run))
    (options.json or options.logs / "results.json").write_text(to_json(record))
    if options.only and options.output is not None:
        print(f"conformance: {options.output} is left as it is, as --only ran a part", file=sys.stderr)
    elif options.output is not None:
        options.output.write_text(compose(record, options.output.read_text() if options.output.exists() else ""))
    for column in record.columns((*EMBEDDED_COLUMNS, *KVM_COLUMNS)):
        print(f"{column}: " + ", ".join(f"{number} {v}" for v, number in sorted(record.verdicts(column).items())))
    errors = sum(outcome.verdict is Verdict.ERROR for row in rows for outcome in row.outcomes.values())
    if errors:
        print(f"conformance: {errors} tests could not be started: see {options.logs}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
