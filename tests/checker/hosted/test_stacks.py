"""Tasks whose future hangs on what their variables do not show: states must not merge there.

Each of these tasks is told 0 or 1 first, keeps it where it is hard to see, asks for something else, and returns it. So
there are always the same two ends.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from tests.checker.hosted.outcomes import by_graphs, by_states
from vtlkit.checker.hosted import stacks
from vtlkit.host.api import Cell, Host

Keeper = Callable[["Told"], object]


class Told:
    """What a task may ask: `bit` is 0 or 1, `other` is of no interest but is an operation."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.first: Cell[int] = host.cell(0, "first")
        self.second: Cell[int] = host.cell(0, "second")
        self.places = tuple([host.cell(0, f"place {index}") for index in range(2)])

    def bit(self) -> int:
        return self.first.load()

    def other(self) -> int:
        self.second.load()
        return 0


def sum_of_a_generator(told: Told) -> object:
    return sum(ask() for ask in (told.bit, told.other))


def _asked(ask: Callable[[], int]) -> int:
    return ask()


def tuple_of_a_map(told: Told) -> object:
    return tuple(map(_asked, (told.bit, told.other)))[0]  # noqa: RUF015 - both are asked


def key_of_a_minimum(told: Told) -> object:
    return min((1, 0), key=lambda number: told.bit() if number else told.other())


def reduced(told: Told) -> object:
    return functools.reduce(lambda before, ask: before + ask(), (told.bit, told.other), 0)


def joined(told: Told) -> object:
    return int("".join([str(told.bit()), str(told.other())])[0])


def extended(told: Told) -> object:
    found: list[int] = []
    found.extend(ask() for ask in (told.bit, told.other))
    return found[0]


def walrus_over_a_pushed_variable(told: Told) -> object:
    value = told.bit()
    return value + ((value := 0) or told.other())


def a_pushed_variable_that_a_closure_changes(told: Told) -> object:
    value = told.bit()

    def forget() -> int:
        nonlocal value
        value = 0
        return told.other()

    return value + forget()


def a_returned_variable_that_finally_changes(told: Told) -> object:
    value = told.bit()
    try:
        return value
    finally:
        value = 0
        told.other()


class Remembers:
    """Holds it for as long as a `with` block lasts."""

    def __init__(self, told: Told, value: int, results: list[int]) -> None:
        self._value, self._results = value, results

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        self._results.append(self._value)


def a_context_manager(told: Told) -> object:
    results: list[int] = []
    with Remembers(told, told.bit(), results):
        told.other()
    return results[0]


def a_generator_as_context_manager(told: Told) -> object:
    results: list[int] = []

    @contextmanager
    def remembers(value: int) -> Iterator[None]:
        yield
        results.append(value)

    with remembers(told.bit()):
        told.other()
    return results[0]


def one_of_two_locks(told: Told) -> object:
    results: list[int] = []
    with Remembers(told, 1, results) if told.bit() else Remembers(told, 0, results):
        told.other()
    return results[0]


def the_value_of_a_with(told: Told) -> object:
    with nullcontext(told.bit()) as value:
        told.other()
        return value


def the_end_of_a_range(told: Told) -> object:
    left = [0] * (1 + told.bit())
    rounds = 0
    for _ in range(len(left)):
        left.clear()
        rounds += 1
        told.other()
    return rounds - 1


def the_end_of_a_range_whose_variable_a_closure_changes(told: Told) -> object:
    end = 1 + told.bit()

    def forget() -> int:
        nonlocal end
        end = 0
        return told.other()

    last = 0
    for number in range(end):
        forget()
        last = number
    return last


def a_position_in_a_list(told: Told) -> object:
    last = 0
    values = [1, 0] if told.bit() else [0]
    for value in values:
        last = max(last, value)
        value = 0
        told.other()
    return last


def a_generator(told: Told) -> object:
    def numbers() -> Iterator[int]:
        value = told.bit()
        yield told.other()
        yield value

    last = 0
    for number in numbers():
        told.other()
        last = number
    return last


def a_generator_that_waits(told: Told) -> object:
    def numbers(value: int) -> Iterator[int]:
        told.other()
        yield value

    return next(numbers(told.bit()))


def a_comprehension(told: Told) -> object:
    return [ask() for ask in (told.bit, told.other)][0]  # noqa: RUF015 - both are asked


def nested_loops(told: Told) -> object:
    found = 0
    for outer in range(2):
        for inner in range(2):
            if outer == 0 and inner == 0:
                found = told.bit()
            elif outer:
                told.other()
    return found


def a_loop_left_early(told: Told) -> object:
    for number in range(2):
        if number == told.bit():
            break
        told.other()
    told.other()
    return number


def an_exception_in_flight(told: Told) -> object:
    try:
        try:
            raise KeyError(told.bit())
        finally:
            told.other()
    except KeyError as error:
        return error.args[0]


def a_chained_comparison(told: Told) -> object:
    return int(told.bit() > told.other() >= 0)


def an_argument_already_evaluated(told: Told) -> object:
    return divmod(told.bit() + 2, 1 + told.other())[0] - 2


def a_subscript(told: Told) -> object:
    values = {0: 5, 1: 5}
    values[told.bit()] = told.other()
    return 1 if values[1] == 0 else 0


def a_format(told: Told) -> object:
    return int(f"{told.bit()}{told.other()}"[0])


def one_of_two_lists(told: Told) -> object:
    first: list[int] = []
    second = first if told.bit() else []
    told.other()
    second.append(1)
    return len(first)


def one_of_two_cells(told: Told) -> object:
    place = told.places[told.bit()]
    told.other()
    place.store(1)
    return told.places[1].load()


def an_iterator(told: Told) -> object:
    values = iter([0, 1])
    if told.bit():
        next(values)
    told.other()
    return next(values)


def minus_zero(told: Told) -> object:
    value = -0.0 if told.bit() else 0.0
    told.other()
    return int(str(value)[0] == "-")


def the_order_of_a_set(told: Told) -> object:
    values = {0, 8} if told.bit() else {8, 0}
    told.other()
    return int(next(iter(values)) == 0)


def truth_and_one(told: Told) -> object:
    value = told.bit() == 1 if told.bit() else 0
    told.other()
    return int(value is not False and value == 1)


def an_object_that_hides_a_list(told: Told) -> object:
    class Hidden(list[int]):
        pass

    hidden = Hidden()
    hidden.value = told.bit()  # type: ignore[attr-defined]
    told.other()
    return hidden.value  # type: ignore[attr-defined]


def a_cache(told: Told) -> object:
    @functools.cache
    def first() -> int:
        return told.bit()

    first()
    told.other()
    return first()


def a_starred_call(told: Told) -> object:
    def pair(*numbers: int) -> int:
        return numbers[0]

    values = [told.bit()]
    return pair(*values, told.other())


def keywords(told: Told) -> object:
    return dict(one=told.bit(), other=told.other())["one"]  # noqa: C408 - a call


def an_unpacking(told: Told) -> object:
    one, _ = told.bit(), told.other()
    return one


def a_conditional_callee(told: Told) -> object:
    return (int.__pos__ if told.bit() else int.__invert__)(told.other() + 1) // 2 + 1


KEEPERS = [value for value in list(globals().values()) if getattr(value, "__annotations__", {}).get("told") == "Told"]
KEEPERS = [keeper for keeper in KEEPERS if isinstance(keeper, type(an_unpacking))]


def program(keeper: Keeper) -> Callable[[Host], object]:
    def build(host: Host) -> None:
        told = Told(host)

        def change() -> None:
            told.first.store(1)
            told.second.store(1)
            for place in told.places:
                place.load()

        host.spawn(lambda: keeper(told), "keeper")  # type: ignore[arg-type]
        host.spawn(change, "changer")

    return build


@pytest.mark.parametrize("model", ["sc", "tso"])
@pytest.mark.parametrize("keeper", KEEPERS, ids=lambda keeper: keeper.__name__)
def test_what_a_task_keeps_to_itself_is_kept(keeper: Keeper, model: str) -> None:
    expected = by_graphs(program(keeper), model)
    assert len({results[0] for results in expected}) == 2
    assert by_states(program(keeper), model) == expected


def test_a_python_whose_instructions_are_not_known_has_no_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(told: Told) -> int:
        return told.other()

    code = function.__code__
    (call,) = [one.offset for one in dis.get_instructions(code) if one.opname == "CALL"]
    assert stacks.at(code, call) is not None
    stacks._analysed.cache_clear()
    monkeypatch.setattr(stacks, "TESTED", ((3, 99),))
    assert stacks.at(code, call) is None
    stacks._analysed.cache_clear()


def test_an_instruction_that_is_not_known_leaves_nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(told: Told) -> int:
        return told.other() + told.other()

    code = function.__code__
    stacks._analysed.cache_clear()
    monkeypatch.setattr(stacks, "_COMBINES", stacks._COMBINES - {"BINARY_OP"})
    assert all(stacks.at(code, one.offset) is None for one in dis.get_instructions(code))
    stacks._analysed.cache_clear()
