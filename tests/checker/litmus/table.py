"""`make litmus LITMUS=dir`: judge every litmus test below some folders under every model, and write docs/LITMUS.md.

python -m tests.checker.litmus.table --dir DIR [--dir DIR ...] --output FILE [--origin TEXT]
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtlkit.checker.litmus.judge import MODELS, judge
from vtlkit.checker.litmus.parser import parse
from vtlkit.checker.litmus.syntax import LitmusError

HEADER = """\
# The Linux kernel's litmus tests on vtlkit

Generated on {date} by `make litmus LITMUS=dir`{origin}; do not edit.

One row is one test: what its file records, and whether its condition comes true never, sometimes or always under each
model. A **bold** result is not the recorded one: an error for lkmm, which the records are of, and what makes a model
another one. "refused" is a grace period under a model that has none ([LIMITS.md](LIMITS.md)). Flags are lkmm's; the
time is that of lkmm, reading the file included, on one core of the machine that wrote this page.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One test. `results` has a verdict for each model, or "refused"."""

    name: str
    recorded: str
    results: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    seconds: float = 0.0

    def agrees(self, model: str) -> bool:
        """Whether a model's result is the recorded one."""
        return self.results[model] == self.recorded


def row(text: str) -> Row:
    """Judge one test. Raises LitmusError if it cannot be read."""
    start = time.perf_counter()
    test = parse(text)
    outcome = judge(test)
    seconds = time.perf_counter() - start
    results = {"lkmm": outcome.verdict}
    for model in MODELS[1:]:
        try:
            results[model] = judge(test, model).verdict
        except LitmusError:
            results[model] = "refused"
    return Row(test.name, test.recorded, results, tuple(sorted(outcome.flags)), seconds)


def page(rows: Sequence[Row], date: str, origin: str = "") -> str:
    """The Markdown page."""
    return "\n".join(_lines(rows, date, origin)) + "\n"


def _lines(rows: Sequence[Row], date: str, origin: str) -> Iterator[str]:
    yield HEADER.format(date=date, origin=f", `dir` being {origin}" if origin else "")
    for model in MODELS:
        agreeing = sum(each.agrees(model) for each in rows)
        yield f"- {model}: {agreeing} of {len(rows)} agree with the record"
    yield ""
    yield f"| test | recorded | {' | '.join(MODELS)} | flags | time |"
    yield f"| --- | --- | {' | '.join('---' for _ in MODELS)} | --- | ---: |"
    for each in rows:
        cells = [each.results[model] if each.agrees(model) else f"**{each.results[model]}**" for model in MODELS]
        flags = ", ".join(each.flags)
        yield f"| {each.name} | {each.recorded} | {' | '.join(cells)} | {flags} | {each.seconds * 1000:.1f} ms |"


def files(folders: Iterable[Path]) -> list[Path]:
    """Every litmus test below the folders, each folder's sorted."""
    return [path for folder in folders for path in sorted(folder.rglob("*.litmus"))]


def main(words: Sequence[str]) -> int:
    """Returns 0 if lkmm agrees everywhere, 1 if not, 2 if something cannot be read."""
    parser = argparse.ArgumentParser(prog="make litmus")
    parser.add_argument("--dir", type=Path, action="append", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--origin", default="")
    options = parser.parse_args(words)
    rows = []
    for path in files(options.dir):
        try:
            rows.append(row(path.read_text()))
        except (LitmusError, OSError) as error:
            print(f"make litmus: {path}: {error}", file=sys.stderr)
            return 2
    if not rows:
        print(f"make litmus: no .litmus file in {', '.join(map(str, options.dir))}", file=sys.stderr)
        return 2
    options.output.write_text(page(rows, datetime.date.today().isoformat(), options.origin))
    agreeing = sum(each.agrees("lkmm") for each in rows)
    print(f"{agreeing} of {len(rows)} agree under lkmm; {options.output} is written")
    return 0 if agreeing == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
