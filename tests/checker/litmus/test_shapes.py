"""Classic shapes have the outcomes that they are known for, under each model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.checker.litmus.rig import SHAPES, disagrees, outcome, shape, written
from vtlkit.checker.litmus.judge import ALWAYS, NEVER, SOMETIMES, judge
from vtlkit.checker.litmus.lkmm import candidates, traces
from vtlkit.checker.litmus.lkmm.model import Lkmm
from vtlkit.checker.litmus.parser import parse
from vtlkit.checker.litmus.syntax import LitmusError, holds

KERNEL = "VTLKIT_LITMUS_DIR"

BUFFERED = ("SB", "SB+mb+rmb", "R")
"""What store buffers show."""
LOCKED = ("SB+failed-cmpxchgs", "SB+relaxed-xchgs", "SB+unlock-locks")
"""What they would show, but that locked instructions wait for them."""


def test_there_are_shapes() -> None:
    assert len(SHAPES) > 70


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_under_lkmm(name: str) -> None:
    assert not disagrees(name, Lkmm)


@pytest.mark.parametrize("name", SHAPES)
def test_what_sc_allows_every_model_allows(name: str) -> None:
    states = set(outcome(name, "sc").states)
    assert states
    assert states <= set(outcome(name).states)


@pytest.mark.parametrize("name", [name for name in SHAPES if "RCU" not in name and "grace" not in name])
def test_what_tso_allows_lkmm_allows(name: str) -> None:
    weak = outcome(name)
    assert set(outcome(name, "sc").states) <= set(outcome(name, "tso").states) <= set(weak.states)


@pytest.mark.parametrize("name", BUFFERED)
def test_what_store_buffers_show(name: str) -> None:
    assert outcome(name, "tso").verdict == SOMETIMES


@pytest.mark.parametrize("name", ["MP", "LB", "IRIW+rmbs", "2+2W", "WRC+data+rmb", "SB+mbs", "R+wmb+mb", *LOCKED])
def test_what_store_buffers_do_not_show(name: str) -> None:
    assert outcome(name, "tso").verdict == NEVER


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("MP", SOMETIMES),
        ("MP+release+acquire", NEVER),
        ("MP+wmb+rmb", NEVER),
        ("MP+assign+deref", NEVER),
        ("LB", NEVER),
        ("IRIW+rmbs", SOMETIMES),
        ("IRIW+mbs", NEVER),
        ("2+2W", SOMETIMES),
        ("MP+unlock-lock+rmb", SOMETIMES),
        ("counter", ALWAYS),
    ],
)
def test_what_rc11_says(name: str, verdict: str) -> None:
    assert outcome(name, "rc11").verdict == verdict


@pytest.mark.parametrize("model", ["lkmm", "sc", "tso", "rc11"])
def test_the_witness_is_an_execution_of_all_threads(model: str) -> None:
    found = outcome("lost-increment", model)
    assert found.positive
    assert [len(column) for column in found.witness] == [2, 2]
    assert not outcome("counter", model).negative


def test_final_states_count_executions() -> None:
    found = outcome("SB")
    assert dict(found.states) == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1}
    assert (found.positive, found.negative, found.executions) == (1, 3, 4)
    assert dict(outcome("SB", "sc").states) == {(0, 1): 1, (1, 0): 1, (1, 1): 1}


def test_a_filter_leaves_executions_out() -> None:
    test = shape("filtered")
    found = judge(test)
    assert test.keep is not None
    assert all(holds(test.keep, dict(zip(found.places, state, strict=True))) for state in found.states)
    assert [str(place) for place in found.places] == ["1:r0", "1:r1", "x", "y"]


def test_who_never_gets_the_lock_has_no_execution() -> None:
    for model in ("lkmm", "sc", "tso", "rc11"):
        found = judge(written("spin_lock(l); spin_lock(l);"), model)
        assert found.executions == 0
        assert found.verdict == NEVER


@pytest.mark.parametrize(
    ("thread", "flag"),
    [
        ("rcu_read_lock();", "unbalanced-rcu-locking"),
        ("rcu_read_unlock();", "unbalanced-rcu-locking"),
        ("int r0 = srcu_read_lock(s);", "unbalanced-srcu-locking"),
        ("srcu_read_unlock(s, 1);", "unbalanced-srcu-locking"),
        ("int r0 = srcu_read_lock(s); srcu_read_unlock(s, r0 + 1);", "srcu-bad-nesting"),
        ("rcu_read_lock(); synchronize_srcu(s); rcu_read_unlock();", "invalid-sleep"),
        ("*x = 1; WRITE_ONCE(*x, 2);", "mixed-accesses"),
        ("spin_unlock(l);", "unmatched-unlock"),
        ("spin_lock(l); spin_unlock(l); spin_unlock(l);", "unmatched-unlock"),
        ("int r0 = READ_ONCE(*l); spin_lock(l);", "mixed-lock-accesses"),
    ],
)
def test_flags(thread: str, flag: str) -> None:
    assert judge(written(thread)).flags == {flag}


def test_sections_that_fit_have_no_flag() -> None:
    thread = "int r0; int r1; rcu_read_lock(); rcu_read_lock(); r0 = srcu_read_lock(s); r1 = srcu_read_lock(s);"
    thread += "srcu_read_unlock(s, r1); srcu_read_unlock(s, r0); rcu_read_unlock(); rcu_read_unlock();"
    assert judge(written(thread)).flags == set()
    assert judge(written("*x = 1; smp_mb(); WRITE_ONCE(*x, 2);")).flags == set()


def test_the_index_of_a_section_is_no_other_value() -> None:
    thread = "".join(f"int r{n}; r{n} = srcu_read_lock(s); srcu_read_unlock(s, r{n});" for n in range(2))
    found = judge(written(thread, thread, condition="locations [0:r0; 0:r1; 1:r0; 1:r1] exists (true)"))
    ((state, _),) = found.states.items()
    assert len({0, 1, 2, *state}) == 7


@pytest.mark.parametrize("model", ["tso", "rc11"])
def test_grace_periods_are_refused_where_there_are_none(model: str) -> None:
    with pytest.raises(LitmusError, match="no grace periods") as caught:
        judge(written("WRITE_ONCE(*x, 1);\nsynchronize_rcu();"), model)
    assert caught.value.line == 6


@pytest.mark.parametrize("model", ["lkmm", "sc", "tso", "rc11"])
@pytest.mark.parametrize(
    ("thread", "complaint"),
    [
        ("int r0 = READ_ONCE(*x); r0 = READ_ONCE(*r0);", "used as a pointer"),
        ("int r0 = 4 / READ_ONCE(*x);", "divides by 0"),
        ("int r0 = READ_ONCE(x[1]);", "outside of its array"),
        ("int r0 = 1 << (READ_ONCE(*x) - 1);", "shifts by -1"),
        ("int r0 = -x;", "of the address of x"),
        ("atomic_and(1, y);", "'&' of an address"),
    ],
)
def test_what_no_program_may_do(model: str, thread: str, complaint: str) -> None:
    with pytest.raises(LitmusError, match=complaint):
        judge(written(thread, initial="int *y = &x;"), model)


def test_a_test_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "TRACES_LIMIT", 100)
    monkeypatch.setattr(candidates, "CANDIDATES_LIMIT", 100)
    thread = "\n".join(f"int r{number} = atomic_add_return(1, x);" for number in range(4))
    with pytest.raises(LitmusError, match="possible runs: too many for --model lkmm"):
        judge(written(*[thread] * 3))
    thread = "\n".join(f"WRITE_ONCE(*x, {number});" for number in range(4))
    with pytest.raises(LitmusError, match="candidate executions: too many for --model lkmm"):
        judge(written(*[thread] * 6))
    with pytest.raises(LitmusError, match="more than 64 events"):
        judge(written(thread * 17))


@pytest.mark.skipif(KERNEL not in os.environ, reason=f"{KERNEL} names no tools/memory-model/litmus-tests of a kernel")
def test_the_kernels_own() -> None:
    """All of the folder agree; those of Linux 6.1 are 34."""
    paths = sorted(Path(os.environ[KERNEL]).rglob("*.litmus"))
    assert paths
    tests = {path.name: parse(path.read_text()) for path in paths}
    assert [name for name, test in tests.items() if judge(test).agrees(test) is not True] == []
