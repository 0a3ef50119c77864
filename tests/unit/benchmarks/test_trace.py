"""The sources without tracepoints have none, and still run."""

from __future__ import annotations

import ast
from math import isfinite

import pytest

from benchmarks.bench_trace import SOURCE, seconds_per_exit, strip, stripped_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if vcpu.trace is not None:\n    vcpu.trace.kick()\nwake()", "wake()"),
        ("if self.trace is not None:\n    self.trace.signal()\nstore()", "store()"),
        ("run = vendor.run if vcpu.trace is None else tracing.run", "run = vendor.run"),
        ("if vcpu.trace is not None:\n    a()\nelse:\n    b()", "if vcpu.trace is not None:\n    a()\nelse:\n    b()"),
        ("if vcpu.task is not None:\n    a()", "if vcpu.task is not None:\n    a()"),
    ],
)
def test_a_tracepoint_is_taken_out(text: str, expected: str) -> None:
    assert strip(text)[0] == ast.unparse(ast.parse(expected))


def test_the_sources_have_tracepoints_and_the_copy_has_none() -> None:
    def found(source: str) -> int:
        return source.count("trace.kick()")

    relative = "vtlkit/kvm/vcpu.py"
    assert found((SOURCE / relative).read_text()) == 1
    assert found((stripped_source() / relative).read_text()) == 0


def test_the_copy_runs() -> None:
    # So few turns drown in the noise and may come out negative.
    assert isfinite(seconds_per_exit(stripped_source(), 100))
    assert isfinite(seconds_per_exit(SOURCE, 100, ".jsonl"))
