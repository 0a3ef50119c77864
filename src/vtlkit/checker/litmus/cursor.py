"""A place among the words of a test: what stands there, and complaints that name its line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vtlkit.checker.litmus.lexer import END, NAME, NUMBER, Token
from vtlkit.checker.litmus.syntax import LitmusError

_TYPES: Final = frozenset(
    [
        "void",
        "char",
        "short",
        "int",
        "long",
        "unsigned",
        "signed",
        "bool",
        "_Bool",
        "struct",
        "union",
        "enum",
        "const",
        "volatile",
        "u8",
        "u16",
        "u32",
        "u64",
        "s8",
        "s16",
        "s32",
        "s64",
        "__rcu",
    ]
)

_DIGITS_LIMIT: Final = 20


class Cursor:
    """Moves over the words of one test, from the first to END."""

    def __init__(self, words: Sequence[Token]) -> None:
        self._words = words
        self._at = 0

    @property
    def here(self) -> Token:
        """The word that comes next."""
        return self._words[self._at]

    @property
    def line(self) -> int:
        """Its line."""
        return self.here.line

    def ahead(self, distance: int) -> str:
        """Text of the word that stands `distance` behind the next one; "" behind the end."""
        index = self._at + distance
        return self._words[index].text if index < len(self._words) and self._words[index].kind != END else ""

    def sees(self, *texts: str) -> bool:
        """Whether the next word is one of these."""
        return self.here.kind != END and self.here.text in texts

    def take(self) -> Token:
        """The next word, which is passed."""
        word = self.here
        if word.kind != END:
            self._at += 1
        return word

    def accept(self, *texts: str) -> bool:
        """Pass the next word if it is one of these."""
        if self.sees(*texts):
            self._at += 1
            return True
        return False

    def expect(self, text: str, where: str = "") -> Token:
        """Pass this word. Raises LitmusError where another one stands."""
        if not self.sees(text):
            raise self.error(f"'{text}' expected{' ' + where if where else ''}")
        return self.take()

    def name(self, what: str) -> str:
        """Pass a name."""
        if self.here.kind != NAME:
            raise self.error(f"{what} expected")
        return self.take().text

    def integer(self) -> int:
        """Pass a number, with its sign."""
        negative = self.accept("-")
        if self.here.kind != NUMBER:
            raise self.error("a number expected")
        if len(self.here.text) > _DIGITS_LIMIT:
            raise LitmusError(self.line, f"a number of more than {_DIGITS_LIMIT} digits")
        text = self.take().text
        value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
        return -value if negative else value

    def error(self, message: str) -> LitmusError:
        """The complaint that `message` is so, where there is something else."""
        found = self.here.text if self.here.kind == END else f"'{self.here.text}'"
        return LitmusError(self.line, f"{message}, found {found}")

    def sees_type(self, distance: int = 0) -> bool:
        """Whether a type begins there: one of C's or the kernel's, or any name that ends in _t."""
        text = self.ahead(distance)
        return text in _TYPES or (text.endswith("_t") and text.isidentifier())

    def skip_type(self) -> None:
        """Pass a type, without the stars of a declarator."""
        while self.sees_type():
            if self.take().text in ("struct", "union", "enum"):
                self.name("the name of a structure")
