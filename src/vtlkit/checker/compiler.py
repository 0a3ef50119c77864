"""The compiler's freedom with plain accesses of a model: is this READ_ONCE superfluous?

A model marks where each access that may be plain could be made instead, and what else a compiler may do with it. Each
of these is a *form*. A compiler chooses once, for all threads that run the code: so every choice is a program of its
own, and each is checked. (Were the choice made anew in each execution, the search would grow by its factor, and some
counterexamples would need two compilers.)

| form | of | is |
| --- | --- | --- |
| in place | loads, stores | where it stands in the source |
| moved | loads, stores | at another place between two compiler barriers, which the model has marked |
| fused | loads | not made: the value is that of an earlier access of the same thread to the same variable |
| repeated | loads | made again for each use of the value |
| torn | stores | made as two stores, of which the first leaves a value that nobody has written |

Compiler barriers are calls of functions in other files, and every barrier, lock and atomic operation with a result.
Other volatile accesses are none: C keeps them in order among themselves, but a plain access may pass them.
Not covered: stores that the compiler invents, loads that it moves out of loops without a barrier (there are none in
the models), and stores that it drops since another one follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

from vtlkit.checker.ops import Value

if TYPE_CHECKING:
    from vtlkit.checker.kernel import Variable

IN_PLACE: Final = "in place"
RACING: Final = "as C has it"
"""The access is plain: whether it races is the question, not what a compiler makes of it."""


@dataclass(frozen=True)
class Site:
    """An access of a model. `text` is the source's, with its mark; `forms` those besides IN_PLACE."""

    name: str
    text: str
    forms: tuple[str, ...] = ()

    def all_forms(self) -> tuple[str, ...]:
        """What a compiler may do with it, if it is plain."""
        return (IN_PLACE, *self.forms)


Compilation = Mapping[str, str]
"""Name of a site -> its form. Sites that are not in it keep their READ_ONCE or WRITE_ONCE."""


def compilations(sites: tuple[Site, ...]) -> Iterator[Compilation]:
    """All ways to compile these, each without its mark."""
    for forms in product(*[site.all_forms() for site in sites]):
        yield {site.name: form for site, form in zip(sites, forms, strict=True)}


class Load:
    """One execution of a load, in one task: `at` marks where it could be made, `value` is where it stands."""

    def __init__(self, variable: Variable, form: str | None) -> None:
        self._variable = variable
        self._form = form
        self._done = False
        self._value: Value = None

    def at(self, form: str) -> None:
        """The compiler may make it here."""
        if self._form == form:
            self._value = self._variable.read_once()
            self._done = True

    def fused(self, form: str, value: Value) -> None:
        """The compiler may take the value of an earlier access of this thread."""
        if self._form == form:
            self._value = value
            self._done = True

    def value(self) -> Value:
        """Here it stands in the source."""
        if not self._done:
            self._value = self._variable.read() if self._form == RACING else self._variable.read_once()
            self._done = True
        return self._value

    def used_again(self, form: str) -> Value:
        """The value once more: the compiler may load it again instead of keeping it."""
        if self._form == form:
            self._value = self._variable.read_once()
        return self._value


class Store:
    """One execution of a store, in one task."""

    def __init__(self, variable: Variable, new: Value, form: str | None, torn: Value = None) -> None:
        """`torn`: what the variable is between two halves of the store."""
        self._variable = variable
        self._new = new
        self._form = form
        self._torn = torn
        self._done = False

    def at(self, form: str) -> None:
        """The compiler may make it here."""
        if self._form == form and not self._done:
            self._variable.write_once(self._new)
            self._done = True

    def here(self, *moved: str) -> None:
        """Here it stands in the source; with one of the forms `moved` it comes later, or has been made."""
        if self._done or self._form in moved:
            return
        if self._form == RACING:
            self._variable.write(self._new)
        else:
            if self._form == "torn":
                self._variable.write_once(self._torn)
            self._variable.write_once(self._new)
        self._done = True
