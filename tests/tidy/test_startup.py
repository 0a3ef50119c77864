"""`vtlkit --help` loads nothing that only a running guest needs: it must answer at once. A run that is not traced does
not load what traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = {"unicorn", "iced_x86", "greenlet", "perfetto", "google", "numpy"}

PROBE = """
import json, runpy, sys
sys.argv = ["vtlkit", *sys.argv[1:]]
status = 0
try:
    runpy.run_module("vtlkit", run_name="__main__")
except SystemExit as end:
    status = end.code or 0
print(json.dumps({"status": status, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def probe(program: str, *words: str) -> tuple[str, dict[str, object]]:
    """Standard output of `program` with `words`, and what it wrote to standard error as JSON."""
    command = [sys.executable, "-c", program, *words]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr)


def loaded(report: dict[str, object]) -> set[str]:
    modules = report["modules"]
    assert isinstance(modules, list)
    return {name.partition(".")[0] for name in modules}


def test_help_loads_no_engine() -> None:
    output, report = probe(PROBE, "--help")
    assert report["status"] == 0
    assert "run" in output
    assert not loaded(report) & HEAVY


def test_a_run_without_a_trace_loads_none() -> None:
    _, report = probe(PROBE, "run", "bench", "--append", "exit", "--quiet")
    assert report["status"] == 1
    modules = report["modules"]
    assert isinstance(modules, list)
    assert "vtlkit.vmm.machine" in modules
    assert not [name for name in modules if name.startswith("vtlkit.trace.")]


def test_a_small_check_that_holds_loads_neither_arrays_nor_tables() -> None:
    _, report = probe(PROBE, "check", "kvm_block")
    assert report["status"] == 0
    modules = report["modules"]
    assert isinstance(modules, list)
    assert "vtlkit.checker.states.search" in modules
    assert not loaded(report) & {*HEAVY, "numpy", "rich"}


def test_the_probe_sees_what_is_loaded() -> None:
    _, report = probe("import greenlet\n" + PROBE.replace('runpy.run_module("vtlkit", run_name="__main__")', "pass"))
    assert loaded(report) & HEAVY == {"greenlet"}
