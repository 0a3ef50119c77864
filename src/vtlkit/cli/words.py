"""Options that take one of a few words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import typer

Word = TypeVar("Word", bound=str)


def word_parser(words: Iterable[Word]) -> Callable[[str], Word]:
    """A parser that gives back the word that was written, and raises typer.BadParameter for another one."""
    known = {str(word): word for word in words}

    def parse_word(text: str) -> Word:
        if text not in known:
            raise typer.BadParameter(f"'{text}' is not one of {', '.join(known)}")
        return known[text]

    return parse_word
