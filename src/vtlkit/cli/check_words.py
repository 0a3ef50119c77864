"""What `vtlkit check` is asked for: protocols, sizes, a variant, models, an engine; and the token of it all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vtlkit.cli.status import BadInput

if TYPE_CHECKING:
    from vtlkit.checker.program import Program
    from vtlkit.checker.protocols import Protocol

COMMAND: Final = "vtlkit check"
MODELS: Final = ("sc", "tso", "rc11")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_LIST_HINT: Final = "'vtlkit check --list' shows all"


@dataclass(frozen=True, slots=True)
class Job:
    """One check: a protocol or a variant of it, at a size, under a model, by an engine."""

    protocol: Protocol
    variant: str
    sizes: Mapping[str, int]
    model: str
    engine: str | None = None
    """None: the one that suits the program, which is known when it has been built."""
    file: Path | None = None
    """The user's, where the protocol is."""

    @property
    def title(self) -> str:
        """`name!variant`, as in a token; in a user's file `file.py::name`."""
        name = self.protocol.name if self.file is None else f"{self.file}::{self.protocol.name}"
        return f"{name}!{self.variant}" if self.variant else name

    @property
    def shown_sizes(self) -> str:
        """`wakers 3, vcpus 1`."""
        return ", ".join(f"{name} {value}" for name, value in self.sizes.items())

    def token(self, engine: str) -> str:
        """What `--replay` takes, to do again what `engine` did."""
        sizes = ",".join(f"{name}={value}" for name, value in self.sizes.items())
        return f"check:{self.title}:{sizes}:{self.model}:{engine}"

    def build(self) -> Program:
        """The program. Raises what the protocol raises."""
        make = self.protocol.variant(self.variant).build if self.variant else self.protocol.build
        return make(self.model, self.sizes)


@dataclass(frozen=True, slots=True)
class Wish:
    """The options that are the same for every name."""

    variant: str | None = None
    models: tuple[str, ...] | None = None
    engine: str | None = None


def split_words(words: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Names, and sizes by name, of `NAME --wakers 3 --n=5`."""
    names: list[str] = []
    sizes: dict[str, int] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            names.append(word)
            continue
        option, has_value, value = word.partition("=")
        if not option.startswith("--") or len(option) < 3:
            raise BadInput(COMMAND, f"no option '{word}': '{COMMAND} --help' says what there is")
        if not has_value:
            value = next(rest, "")
        if not _NUMBER.fullmatch(value):
            raise BadInput(COMMAND, f"{option}: '{value}' is no whole number; write {option} 3")
        sizes[option[2:]] = int(value)
    return names, sizes


def jobs_for(name: str, sizes: Mapping[str, int], wish: Wish) -> list[Job]:
    """A job for each model; for a file without `::name`, for each of its protocols."""
    file, protocols = _protocols(name)
    return [job for protocol in protocols for job in _of_protocol(protocol, sizes, wish, file)]


def _protocols(name: str) -> tuple[Path | None, list[Protocol]]:
    path, _, wanted = name.partition("::")
    if path.endswith(".py"):
        from vtlkit.checker.user import UserError, load

        try:
            found = load(Path(path))
        except UserError as error:
            raise BadInput(COMMAND, str(error)) from None
        if wanted and wanted not in found:
            raise BadInput(COMMAND, f"{path} has no protocol '{wanted}': there are {', '.join(found)}")
        return Path(path), [found[wanted]] if wanted else list(found.values())
    from vtlkit.checker.protocols import catalogue, find

    try:
        return None, [find(name)]
    except KeyError:
        raise BadInput(COMMAND, f"no protocol '{name}': {_near(name, catalogue())}") from None


def _near(name: str, names: Iterable[str]) -> str:
    known = list(names)
    folded = {each.lower(): each for each in known}
    near = [folded[each] for each in get_close_matches(name.lower(), folded, 3, 0.5)]
    near += [each for each in known if each.startswith(f"{name}.") and each not in near]
    return f"did you mean {' or '.join(near)}? {_LIST_HINT}" if near else _LIST_HINT


def _of_protocol(protocol: Protocol, sizes: Mapping[str, int], wish: Wish, file: Path | None) -> Iterator[Job]:
    from vtlkit.checker.check import engine_for

    variant = wish.variant or ""
    chosen = {**protocol.sizes, **_variant_sizes(protocol, variant)}
    for name, value in sizes.items():
        if name not in chosen:
            there = ", ".join(f"--{each}" for each in chosen)
            raise BadInput(
                COMMAND, f"{protocol.name} has no size --{name}: {f'there is {there}' if there else 'it has none'}"
            )
        chosen[name] = value
    for model in wish.models or protocol.models:
        if model not in protocol.models:
            raise BadInput(COMMAND, f"{protocol.name} is for {', '.join(protocol.models)}, not for {model}")
        if wish.engine is not None and protocol.engine not in (None, wish.engine):
            raise BadInput(COMMAND, f"{protocol.name} is for the engine '{protocol.engine}' alone: leave --engine out")
        engine = wish.engine or protocol.engine
        try:
            engine_for(model, engine)
        except ValueError as error:
            raise BadInput(COMMAND, str(error)) from None
        yield Job(protocol, variant, chosen, model, engine, file)


def _variant_sizes(protocol: Protocol, variant: str) -> Mapping[str, int]:
    if not variant:
        return {}
    try:
        return protocol.variant(variant).sizes
    except KeyError:
        known = ", ".join(each.name for each in protocol.known_bad)
        there = f"there are {known}" if known else "it has no known-bad variants"
        raise BadInput(COMMAND, f"{protocol.name} has no variant '{variant}': {there}") from None


def parse_token(token: str) -> Job:
    """The job that a token names."""
    parts = token.rsplit(":", 3)
    if len(parts) != 4 or not parts[0].startswith("check:"):
        raise BadInput(COMMAND, f"'{token}' is no token of a check; take one that was printed with a counterexample")
    title, listed, model, engine = parts
    name, _, variant = title.removeprefix("check:").partition("!")
    words = [f"--{each}" for each in listed.split(",") if each]
    if model not in MODELS:
        raise BadInput(COMMAND, f"'{token}': no memory model '{model}'")
    names, sizes = split_words(words)
    (job, *more) = jobs_for(name, sizes, Wish(variant or None, (model,), engine))
    if names or more:
        raise BadInput(COMMAND, f"'{token}' names more than one protocol")
    return job


def parse_models(text: str) -> tuple[str, ...]:
    """`sc,tso`."""
    models = tuple(dict.fromkeys(text.split(",")))
    for model in models:
        if model not in MODELS:
            raise BadInput(COMMAND, f"--model: '{model}' is not one of {', '.join(MODELS)}")
    return models
