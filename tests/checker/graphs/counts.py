"""Count executions: `python -m tests.checker.graphs.counts [--model MODEL] [--duplicates] [NAME...]`.

Prints each program's count beside the known one, and how many graphs a second of processor time were visited. Without
names, all programs, also those that are too big for the tests. Ends with 1 if a count is wrong, with 2 if a name is
unknown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from vtlkit.checker.graphs.consistency import MODELS
from vtlkit.checker.graphs.search import explore
from vtlkit.checker.programs import counted, litmus


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.checker.graphs.counts", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="programs to count (default: all)")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="memory model (default: all)")
    parser.add_argument("--duplicates", action="store_true", help="remember all graphs and count those met twice")
    options = parser.parse_args(argv)
    available = {item.name: item for item in (*litmus.catalogue(), *counted.catalogue())}
    unknown = [name for name in options.names if name not in available]
    if unknown:
        print(f"counts: no program {', '.join(unknown)}", file=sys.stderr)
        return 2
    wrong = 0
    print("| program | model | executions | known | blocked | duplicates | graphs/s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.names or available:
        for model in options.model or MODELS:
            begin = time.process_time()
            result = explore(available[name].program, model, check_duplicates=options.duplicates)
            seconds = time.process_time() - begin
            known = available[name].counts.get(model)
            good = known in (None, result.executions) and not result.duplicates
            wrong += not good
            cells = [name, model, result.executions, "" if known is None else known, result.blocked]
            cells.append(result.duplicates if options.duplicates else "")
            cells.append(f"{(result.executions + result.blocked) / seconds:.0f}")
            print(f"| {' | '.join(map(str, cells))} |{'' if good else ' WRONG'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
