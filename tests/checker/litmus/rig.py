"""The shapes of this folder, and small ways to write and judge a test."""

from __future__ import annotations

from pathlib import Path

from vtlkit.checker.litmus.judge import Outcome, judge
from vtlkit.checker.litmus.lkmm.model import Lkmm
from vtlkit.checker.litmus.lkmm.search import search
from vtlkit.checker.litmus.parser import parse
from vtlkit.checker.litmus.syntax import LitmusTest

FOLDER = Path(__file__).parent / "shapes"
SHAPES = sorted(path.stem for path in FOLDER.glob("*.litmus"))


def shape(name: str) -> LitmusTest:
    """One of the folder."""
    return parse((FOLDER / f"{name}.litmus").read_text())


def outcome(name: str, model: str = "lkmm") -> Outcome:
    """A shape's outcome."""
    return judge(shape(name), model)


def disagrees(name: str, model: type[Lkmm]) -> bool:
    """Whether a variant of LKMM does not give what the shape records, or flags a race where there is none."""
    test = shape(name)
    found = search(test, model)
    return found.agrees(test) is not True or ("data-race" in found.flags) is not test.recorded_race


def written(*threads: str, condition: str = "exists (true)", initial: str = "") -> LitmusTest:
    """A test of these threads over the shared variables x, y and z, and the lock l."""
    parameters = "int *x, int *y, int *z, spinlock_t *l, struct srcu_struct *s"
    parts = [f"P{number}({parameters})\n{{\n{text}\n}}\n" for number, text in enumerate(threads)]
    return parse("\n".join(["C written", f"{{{initial}}}", *parts, condition]))
