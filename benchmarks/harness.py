"""Run the benchmark cases of this directory: `python -m benchmarks.harness [--json] [--rounds N] [NAME...]`.

Each module bench_*.py beside this file has a function `cases() -> list[Case | Figure]`; what these are and how they are
measured is `vtlkit.cli.measure`. Ends with 0 however fast the machine was; with 2 if a name is not that of a case.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from vtlkit.cli.measure import Case, Figure, measure_row, to_json, to_table


def all_cases(directory: Path = Path(__file__).parent, package: str = "benchmarks") -> list[Case | Figure]:
    """The cases of every bench_*.py, modules in alphabetical order. Raises ValueError if two have one name."""
    found: dict[str, Case | Figure] = {}
    for path in sorted(directory.glob("bench_*.py")):
        for case in importlib.import_module(f"{package}.{path.stem}").cases():
            if case.name in found:
                raise ValueError(f"{path.name}: there is already a case '{case.name}'")
            found[case.name] = case
    return list(found.values())


def describe(case: Case | Figure) -> str:
    """One line of `--list`."""
    return f"{case.name} (against {case.rival_name})" if isinstance(case, Case) else f"{case.name} (in {case.unit})"


def main(argv: Sequence[str] | None = None, cases: Sequence[Case | Figure] | None = None) -> int:
    """Measure the chosen cases; one line on standard error as each is done, the table or JSON on standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases to run (default: all)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of each case (default 11)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    options = parser.parse_args(argv)
    available = {case.name: case for case in (all_cases() if cases is None else cases)}
    if options.list:
        print("\n".join(map(describe, available.values())))
        return 0
    unknown = [name for name in options.names if name not in available]
    if unknown or options.rounds < 1:
        complaint = f"no case {', '.join(unknown)}" if unknown else "--rounds must be at least 1"
        print(f"bench: {complaint}", file=sys.stderr)
        return 2
    results = []
    for name in options.names or available:
        results.append(measure_row(available[name], options.rounds))
        print(results[-1].brief(), file=sys.stderr, flush=True)
    print(to_json(results) if options.json else to_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
