"""What tracepoints cost: while nothing is traced, against a build without them; and with each kind of sink.

The build without is a copy of the sources that `Strip` has taken every tracepoint out of. Each side runs the CPUID loop
of bench.elf in a process of its own that stays, and takes turns with the other; processor time is what counts, as a
machine that is shared would drown two per cent of wall-clock time.
"""

from __future__ import annotations

import ast
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from vtlkit.cli.measure import Case

OFF_LIMIT: Final = 1.02
TURNS: Final = 100_000
TRACED_TURNS: Final = 20_000
SOURCE: Final = Path(__file__).parents[1] / "src"

_WORKER: Final = """
import sys, time
from pathlib import Path
from vtlkit import guests
from vtlkit.cli.compose import Mode, composed
from vtlkit.vmm.config import MachineConfig

def traced(path):
    from vtlkit.trace.sinks import open_sink
    from vtlkit.trace.tracer import Tracer
    return lambda host: Tracer(host.now_ns, host.context, open_sink(Path(path)))

def seconds(turns, options):
    with composed(Mode(), MachineConfig(memory=64 << 20, append=f"cpuid {turns}"), len, **options) as machine:
        machine.load(guests.path("bench"))
        begin = time.process_time()
        machine.run()
        return time.process_time() - begin

for line in sys.stdin:
    turns, path = line.rstrip("\\n").split("\\t")
    options = {"trace": traced(path)} if path else {}
    short = seconds(2, options)
    print((seconds(int(turns) + 2, options) - short) / int(turns), flush=True)
"""


class Strip(ast.NodeTransformer):
    """Takes tracepoints out: `if x.trace is not None: ...`, and the choice of `a if x.trace is None else b`."""

    removed = 0

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        if not _asks(node.test, ast.IsNot) or node.orelse:
            return node
        self.removed += 1
        return None

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        if not _asks(node.test, ast.Is):
            return node
        self.removed += 1
        return node.body


def _asks(test: ast.expr, how: type[ast.cmpop]) -> bool:
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Attribute)
        and test.left.attr == "trace"
        and isinstance(test.ops[0], how)
    )


def strip(text: str) -> tuple[str, int]:
    """A module without its tracepoints, and how many it had."""
    stripper = Strip()
    return ast.unparse(stripper.visit(ast.parse(text))), stripper.removed


@cache
def stripped_source() -> Path:
    """The sources without tracepoints, in a directory that goes when this process ends."""
    directory = Path(tempfile.mkdtemp(prefix="vtlkit-bench-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    shutil.copytree(SOURCE, directory / "src", ignore=shutil.ignore_patterns("__pycache__"))
    removed = 0
    for package in ("kvm", "vmm"):
        for path in (directory / "src" / "vtlkit" / package).rglob("*.py"):
            text, count = strip(path.read_text())
            if count:
                path.write_text(text)
                removed += count
    if not removed:
        raise RuntimeError("no tracepoint was found")
    return directory / "src"


@cache
def _worker(source: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONHASHSEED": "0"}
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(worker.kill)
    return worker


def seconds_per_exit(source: Path, turns: int = TURNS, sink: str = "") -> float:
    """Processor time of a CPUID exit; `sink` is the suffix of a trace that is written meanwhile."""
    worker = _worker(source)
    assert worker.stdin is not None
    assert worker.stdout is not None
    with tempfile.TemporaryDirectory(prefix="vtlkit-bench-") as directory:
        print(turns, f"{directory}/trace{sink}" if sink else "", sep="\t", file=worker.stdin, flush=True)
        return float(worker.stdout.readline())


def _off(source: Path | None) -> float:
    """The smallest of three: what interferes only ever adds."""
    return min(seconds_per_exit(source or stripped_source()) for _ in range(3))


def _traced(suffix: str) -> Case:
    return Case(
        f"trace-{suffix.lstrip('.')}",
        lambda: seconds_per_exit(SOURCE, TRACED_TURNS, suffix),
        "not traced",
        lambda: seconds_per_exit(SOURCE, TRACED_TURNS),
    )


def cases() -> list[Case]:
    """Off first: that is what is promised."""
    off = Case("trace-off", lambda: _off(SOURCE), "sources without tracepoints", lambda: _off(None), OFF_LIMIT)
    return [off, *map(_traced, (".jsonl", ".ftrace", ".pftrace"))]
