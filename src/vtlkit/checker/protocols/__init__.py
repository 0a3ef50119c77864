"""The registry of what `vtlkit check` knows: protocols, each with its sizes and its known-bad variants.

Every module of this package that has a tuple `PROTOCOLS` adds to it. A module imports what its protocols are made of in
their `build`, not before: to find one protocol must not load what all the others are made of. A protocol `wait.x` is
looked for in the module `wait` first, then in the light ones.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from vtlkit.checker.check import MODELS
from vtlkit.checker.program import Program
from vtlkit.checker.result import ProblemKind

Sizes = Mapping[str, int]
Build = Callable[[str, Sizes], Program]
"""(memory model, sizes) -> program. Raises ValueError, with one line, for sizes that cannot be."""
Expected = Mapping[str, tuple[ProblemKind, int] | None]
"""Memory model -> what is found with which number of steps; None: this variant is right under that model."""

_LIGHT = ("three_models", "kernel", "benchmarks")
"""Modules that load nothing of the hypervisor: they are looked into before all the others."""
_PARTS = ("kernel_models", "rig")
"""Modules that protocols are made of. They have none themselves, and are not loaded to find that out."""


RIGHT: Expected = dict.fromkeys(MODELS)
"""Nothing is found under any model."""


def in_steps(kind: ProblemKind, sc: int | None, tso: int | None, rc11: int | None) -> Expected:
    """The same is found under each model, with so many steps; None: right under that one."""
    counts = {"sc": sc, "tso": tso, "rc11": rc11}
    return {model: None if steps is None else (kind, steps) for model, steps in counts.items()}


@dataclass(frozen=True)
class KnownBad:
    """A protocol with one step left out or swapped. A check that finds nothing in it would be worth nothing.

    `expect` is for `sizes`, which are as those of the protocol unless given here.
    """

    name: str
    summary: str
    build: Build
    expect: Expected
    sizes: Sizes = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A small world in which a promise can be broken.

    `summary` is one line that says what must not happen; `sizes` are the options and their values unless others are
    given; `large` those of a long proof; `engine` the only search that can do it, None: that which suits the model;
    `abstracts` is empty for the code that ships, else it names the kernel's code of which this is a model; `endless`:
    its threads have loops without an end, which only the search over states takes.
    """

    name: str
    summary: str
    build: Build
    sizes: Sizes = field(default_factory=dict)
    large: tuple[Sizes, ...] = ()
    models: tuple[str, ...] = MODELS
    engine: str | None = None
    known_bad: tuple[KnownBad, ...] = ()
    changes: tuple[KnownBad, ...] = ()
    """Variants by which it is asked whether a step matters: at their size these do not, under any model."""
    abstracts: str = ""
    endless: bool = False
    promises_nothing: bool = False
    """It is only counted: a benchmark."""
    group: str = ""
    """Heading in the list; where it is empty, whether it is shipped code or a model of the kernel's says it."""

    @property
    def heading(self) -> str:
        """Of the group that it is listed in."""
        return self.group or ("models of the kernel's code" if self.abstracts else "the code that ships")

    @property
    def variants(self) -> tuple[KnownBad, ...]:
        """All that `variant` knows."""
        return self.known_bad + self.changes

    def variant(self, name: str) -> KnownBad:
        """A known-bad variant, or a change. Raises KeyError."""
        for each in self.variants:
            if each.name == name:
                return each
        raise KeyError(name)


def catalogue() -> dict[str, Protocol]:
    """Every protocol by name, in alphabetical order, those of one group together.

    Raises ValueError: two have one name.
    """
    found: dict[str, Protocol] = {}
    for module in [each.name for each in pkgutil.iter_modules(__path__) if each.name not in _PARTS]:
        for protocol in _of_module(module):
            if protocol.name in found:
                raise ValueError(f"there are two protocols '{protocol.name}'")
            found[protocol.name] = protocol
    return dict(sorted(found.items(), key=lambda item: (item[1].heading, item[0])))


def find(name: str) -> Protocol:
    """One protocol. Raises KeyError."""
    likely = name.partition(".")[0].replace("-", "_")
    is_module = likely.isidentifier() and find_spec(f"{__name__}.{likely}") is not None
    for module in (likely, *_LIGHT) if is_module else _LIGHT:
        for protocol in _of_module(module):
            if protocol.name == name:
                return protocol
    return catalogue()[name]


def _of_module(module: str) -> Iterator[Protocol]:
    yield from getattr(importlib.import_module(f"{__name__}.{module}"), "PROTOCOLS", ())
