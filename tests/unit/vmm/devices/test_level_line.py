"""The line ends at the level that the state asks for, however a callback interleaves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vtlkit.vmm.devices.line import LevelLine


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=6), st.booleans())
def test_changes_in_the_middle_of_an_update_are_not_lost(changes: list[tuple[int, bool]], first: bool) -> None:
    """Another context changes the state, and updates the line to its end, between any two steps of an update."""
    state = first
    wire = 0
    step = 0
    pending = sorted(changes)

    def interrupt() -> None:
        nonlocal state, step
        step += 1
        while pending and pending[0][0] <= step:
            state = pending.pop(0)[1]
            inner.update()

    def irq(level: int) -> None:
        nonlocal wire
        interrupt()
        wire = level

    def inner_irq(level: int) -> None:
        nonlocal wire
        wire = level

    def level() -> bool:
        sampled = state
        interrupt()
        return sampled

    inner = LevelLine(inner_irq, lambda: state)
    LevelLine(irq, level).update()
    for _, value in pending:
        state = value
        inner.update()
    assert wire == int(state)
