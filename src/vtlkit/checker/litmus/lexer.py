"""Words of a litmus test. Comments are dropped, but for the result that one of them records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vtlkit.checker.litmus.syntax import LitmusError

NAME: Final = "name"
NUMBER: Final = "number"
SYMBOL: Final = "symbol"
END: Final = "end"

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<open>\(\*+(?=\s|$))
      | (?P<number>0[xX][0-9a-fA-F]+|\d+)(?:[uUlL]+\b)?
      | (?P<name>[A-Za-z_]\w*)
      | (?P<symbol>/\\|\\/|&&|\|\||==|!=|<>|<=|>=|<<|>>|[-+*/%&|^~!<>=(){}\[\];:,?.])
    """,
    re.VERBOSE | re.DOTALL,
)
_RESULT: Final = re.compile(r"\bResult:\s*(\w+)([^\n]*)")
_HEADER: Final = re.compile(r'\{|\(\*+(?=\s|$)|//[^\n]*|/\*.*?\*/|"[^"\n]*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Token:
    """One word, and its line."""

    kind: str
    text: str
    line: int


def tokens(text: str, first_line: int = 1) -> list[Token]:
    """The words of `text`, an END at the end. Raises LitmusError for what is no word."""
    return list(_scan(text, first_line))


def _scan(text: str, line: int) -> Iterator[Token]:
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise LitmusError(line, f"unexpected {text[position]!r}")
        kind = found.lastgroup or ""
        end = found.end()
        if kind == "open":
            end = _close_of(text, position, line)
        elif kind in (NAME, NUMBER, SYMBOL):
            yield Token(kind, found[kind], line)
        line += text.count("\n", position, end)
        position = end
    yield Token(END, "the end of the file", line)


def _close_of(text: str, position: int, line: int) -> int:
    """The end of a comment in parentheses and stars, which may hold others."""
    depth = 0
    for mark in re.finditer(r"\(\*+(?=\s|$)|\*\)", text[position:]):
        depth += 1 if mark[0].startswith("(") else -1
        if not depth:
            return position + mark.end()
    raise LitmusError(line, "a comment that begins with (* does not end")


def body_start(text: str) -> int:
    """Index of the brace that opens the initial values: what stands before it, but for comments, is the header.

    Raises LitmusError where there is none.
    """
    position = 0
    while found := _HEADER.search(text, position):
        if found[0] == "{":
            return found.start()
        line = text.count("\n", 0, found.start()) + 1
        position = _close_of(text, found.start(), line) if found[0].startswith("(") else found.end()
    raise LitmusError(text.count("\n") + 1, "no initial values: '{' expected behind the name, and there is none")


def recorded_result(text: str) -> tuple[str, bool]:
    """What the test says its outcome is ("Never", ... or ""), and whether a data race is part of that."""
    found = _RESULT.search(text)
    return (found[1], "DATARACE" in found[0]) if found else ("", False)
