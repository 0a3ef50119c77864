"""The size ratchet: files above 400 lines and functions above 60 are recorded with their size, and may only shrink.

`python -m tests.tidy.ratchet` reports, `--update` takes over what shrank or went away, and `--update --grow` also
accepts what grew or is new: the diff of sizes.json then shows the decision to the reviewer.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("sizes.json")
TREES = ("src", "tests", "benchmarks", "examples", "guests")
FILE_LINES = 400
FUNCTION_LINES = 60

Sizes = dict[str, int]


def measure(root: Path, trees: Sequence[str] = TREES) -> Sizes:
    """Sizes of what is above a limit: `path` for a file, `path::Class.function` for a function, in lines."""
    sizes: Sizes = {}
    for tree in trees:
        for path in sorted((root / tree).rglob("*.py")):
            text = path.read_text()
            name = path.relative_to(root).as_posix()
            if (lines := len(text.splitlines())) > FILE_LINES:
                sizes[name] = lines
            for function, length in functions(text).items():
                if length > FUNCTION_LINES:
                    sizes[f"{name}::{function}"] = length
    return sizes


def functions(text: str) -> Sizes:
    """Length in lines, decorators left out, of every function, methods and nested ones too, by qualified name."""
    found: Sizes = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                name = prefix + child.name
                length = (child.end_lineno or child.lineno) - child.lineno + 1
                found[name] = max(length, found.get(name, 0))  # overloads and property setters share a name
                visit(child, f"{name}.")
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.")
            else:
                visit(child, prefix)

    visit(ast.parse(text), "")
    return found


def compare(recorded: Mapping[str, int], measured: Mapping[str, int]) -> list[str]:
    """One line for each thing that is new above a limit, or larger than recorded."""
    complaints = []
    for name, size in sorted(measured.items()):
        limit = FUNCTION_LINES if "::" in name else FILE_LINES
        if name not in recorded:
            complaints.append(f"{name}: {size} lines, above {limit}, and not recorded")
        elif size > recorded[name]:
            complaints.append(f"{name}: grew from {recorded[name]} to {size} lines")
    return complaints


def tightened(recorded: Mapping[str, int], measured: Mapping[str, int]) -> Sizes:
    """The record after everything that shrank or went away is taken over, and nothing else."""
    return {name: min(size, measured[name]) for name, size in recorded.items() if name in measured}


def load(record: Path = RECORD) -> Sizes:
    """The recorded sizes."""
    data = json.loads(record.read_text())
    return {str(name): int(size) for name, size in data.items()}


def main(argv: Sequence[str] | None = None, root: Path = ROOT, record: Path = RECORD) -> int:
    """Report or update. Ends with 1 if something is above its recorded size and was not accepted."""
    parser = argparse.ArgumentParser(prog="python -m tests.tidy.ratchet", description=__doc__)
    parser.add_argument("--update", action="store_true", help="take over what shrank or went away")
    parser.add_argument("--grow", action="store_true", help="with --update: also accept what grew or is new")
    options = parser.parse_args(argv)
    if options.grow and not options.update:
        parser.error("--grow goes with --update")
    recorded, measured = load(record), measure(root)
    if options.update:
        recorded = measured if options.grow else tightened(recorded, measured)
        record.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")
    complaints = compare(recorded, measured)
    for line in complaints:
        print(line)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
