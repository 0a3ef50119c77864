"""Searches with a part missing or wrong: the tests must see each of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.checker.states.made_programs import ENDLESS, FAILING, RACING, SIMPLE, Instruction, script
from tests.checker.states.test_states import check, check_race
from tests.sim.known_bad import fails
from vtlkit.checker.ops import Order, Read
from vtlkit.checker.program import Threads
from vtlkit.checker.states import arrays, livelock, machine
from vtlkit.checker.states.arrays import ArraySearch
from vtlkit.checker.states.automaton import Automaton, Local
from vtlkit.checker.states.layout import Layout
from vtlkit.checker.states.tables import Table

ORDERS = (Order.RELAXED, Order.RELAXED, Order.SEQ_CST)


def random_threads(seed: int, kinds: tuple[str, ...]) -> Threads:
    choice = random.Random(seed)

    def instruction() -> Instruction:
        return choice.choice(kinds), choice.choice("xy"), choice.randint(0, 2), choice.choice(ORDERS)

    def body() -> tuple[Instruction, ...]:
        return tuple([instruction() for _ in range(choice.randint(1, 3))])

    first = script(body(), kinds is ENDLESS and choice.random() < 0.5)
    return Threads(*[first] * choice.randint(1, 2), script(body()))


real_fold = Automaton.fold


def fold_forwarded(self: Automaton, group: int, node: Any, buffer: Any, draining: bool) -> Any:
    """A load that the buffer can answer is taken at once: it never sees what others wrote after the buffer was out."""
    passed = real_fold(self, group, node, buffer, draining)
    node, buffer, draining = passed[-1]
    if isinstance(node.op, Read) and not draining:
        word = self.words.word(node.op.location)
        held = [value for other, value in buffer if other == word]
        if held:
            child = self.child(group, node, self.words.values[word][held[-1]])
            return [*passed, *fold_forwarded(self, group, child, buffer, False)]
    return passed


def unmoved(self: ArraySearch) -> None:
    """The layout has grown, and what was packed is left as it was."""
    while self.layout.grow():
        pass
    self.tables = type(self.tables)(self.automaton, self.layout)


KNOWN_BAD: dict[str, tuple[Any, str, Any, tuple[str, ...], str]] = {
    "forwarded loads are taken at once": (Automaton, "fold", fold_forwarded, SIMPLE, "tso"),
    "packed states do not move": (ArraySearch, "_repack", unmoved, SIMPLE, "sc"),
    "no state is a deadlock": (ArraySearch, "_judge", lambda *_: None, SIMPLE, "sc"),
    "no failure is seen": (ArraySearch, "_find_failure", lambda *_: None, FAILING, "sc"),
    "no state has a way out": (livelock, "without_way_out", lambda _, states: states[1:], ENDLESS, "sc"),
    "no livelock": (livelock, "find", lambda *_: None, ENDLESS, "sc"),
    "dictionary: no state is a deadlock": (machine, "judge", lambda *_: machine.ENDED, SIMPLE, "sc"),
    "nobody ends": (Local, "ended", property(lambda _: False), SIMPLE, "tso"),
    "arrays sort nothing": (ArraySearch, "canonical", lambda _self, states: states, SIMPLE, "sc"),
}
"""What is wrong -> where, which function, what is there instead, and the operations and the model that show it."""


@pytest.mark.parametrize("bad", list(KNOWN_BAD))
def test_a_search_with_a_part_missing_is_caught(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, replacement, kinds, model = KNOWN_BAD[bad]
    monkeypatch.setattr(owner, name, replacement)
    attempts = range(400)
    errors = (AssertionError, IndexError, KeyError, ValueError)
    assert fails(lambda seed: check(random_threads(seed, kinds), model, buffer_limit=2), attempts, errors)


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [(machine, "race", lambda *_: None), (ArraySearch, "_race", lambda *_: None)],
    ids=["dictionary", "arrays"],
)
def test_a_search_that_sees_no_race_is_caught(
    owner: Any, name: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, replacement)
    assert fails(lambda seed: check_race(random_threads(seed, RACING), "sc"), range(100))


def test_accesses_that_are_not_noted_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Table.set

    def forgetful(self: Table, local: int, value: int, target: tuple[int, int] | None) -> None:
        real(self, local, value, target)
        self.access[:] = 0

    monkeypatch.setattr(Table, "set", forgetful)
    assert fails(lambda seed: check_race(random_threads(seed, RACING), "sc"), range(100))


def test_a_layout_that_never_grows_wide_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "outgrown", lambda _: False)
    errors = (AssertionError, IndexError, KeyError, ValueError)
    assert fails(lambda seed: check(random_threads(seed, SIMPLE), "sc"), range(100), errors)


def test_without_a_part_missing_all_is_well() -> None:
    for kinds in (SIMPLE, FAILING, ENDLESS):
        assert not fails(lambda seed, kinds=kinds: check(random_threads(seed, kinds), "tso", 2), range(30))  # type: ignore[misc]


def test_chunks_of_a_few_states_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", 3)
    for kinds in (SIMPLE, FAILING, ENDLESS):
        assert not fails(lambda seed, kinds=kinds: check(random_threads(seed, kinds), "tso", 2), range(30))  # type: ignore[misc]
