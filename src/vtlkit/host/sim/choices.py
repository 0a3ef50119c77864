"""The one choice sequence of a simulated run: who runs next, slice lengths, `choose()`, `random_bytes()`.

Promise: a run is a function of its choices. One made from a seed is named by `seed:N` (or `fifo:N`); one whose choices
came from elsewhere, or were recorded, by the choices themselves.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Protocol

from vtlkit.host.splitmix import SplitMix64


class ReplayDivergence(Exception):
    """A replayed run asked for another choice than the recorded run did: the code or its inputs changed."""


class ChoiceSource(Protocol):
    """Where choices come from."""

    def draw(self, count: int, label: str, /) -> int:
        """An integer in [0, count); `count` is at least 2."""


class SeededSource:
    """Choices from a seed."""

    __slots__ = ("_below",)

    def __init__(self, seed: int) -> None:
        self._below = SplitMix64(seed).below

    def draw(self, count: int, _label: str, /) -> int:
        return self._below(count)


@dataclass(frozen=True, slots=True)
class Choice:
    """One recorded choice: `value` out of [0, count)."""

    label: str
    count: int
    value: int


class ReplaySource:
    """Gives recorded choices back and checks that the run asks the recorded questions."""

    __slots__ = ("_choices", "_position")

    def __init__(self, choices: list[Choice]) -> None:
        self._choices = choices
        self._position = 0

    def draw(self, count: int, label: str) -> int:
        position = self._position
        if position == len(self._choices):
            raise ReplayDivergence(f"choice {position} ({label}, {count} ways): the recorded run ended before it")
        recorded = self._choices[position]
        if recorded.label != label or recorded.count != count:
            raise ReplayDivergence(
                f"choice {position} is ({label}, {count} ways); "
                f"the recorded one is ({recorded.label}, {recorded.count} ways)"
            )
        self._position = position + 1
        return recorded.value


class Choices:
    """The sequence: draws from a source and, if asked to, records."""

    __slots__ = ("_draw", "log", "made")

    def __init__(self, source: ChoiceSource, *, record: bool) -> None:
        self._draw = source.draw
        self.log: list[Choice] | None = [] if record else None
        self.made = 0

    def draw(self, count: int, label: str) -> int:
        """An integer in [0, count). No choice is made where there is only one way."""
        if count == 1:
            return 0
        if count < 1:
            raise ValueError(f"choice '{label}' among {count}")
        value = self._draw(count, label)
        if not 0 <= value < count:
            raise ValueError(f"choice '{label}': the source gave {value}, which is not in [0, {count})")
        self.made += 1
        if self.log is not None:
            self.log.append(Choice(label, count, value))
        return value


def encode_choices(choices: list[Choice]) -> str:
    """The choices as URL-safe base64 of a compressed list of (label number, count, value)."""
    labels: dict[str, int] = {}
    body = bytearray()
    for choice in choices:
        _put(body, labels.setdefault(choice.label, len(labels)))
        _put(body, choice.count)
        _put(body, choice.value)
    head = bytearray()
    _put(head, len(labels))
    for label in labels:
        text = label.encode()
        _put(head, len(text))
        head += text
    return base64.urlsafe_b64encode(zlib.compress(bytes(head + body), 9)).decode().rstrip("=")


def decode_choices(text: str) -> list[Choice]:
    """Undo `encode_choices`. Raises ValueError if `text` is no such thing."""
    try:
        data = zlib.decompress(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"replay token is damaged: {error}") from error
    position, label_count = _get(data, 0)
    labels = []
    for _ in range(label_count):
        position, size = _get(data, position)
        labels.append(data[position : position + size].decode())
        position += size
    choices: list[Choice] = []
    while position < len(data):
        position, label = _get(data, position)
        position, count = _get(data, position)
        position, value = _get(data, position)
        if label >= len(labels) or value >= count:
            raise ValueError(f"replay token is damaged: choice {len(choices)}")
        choices.append(Choice(labels[label], count, value))
    return choices


def _put(out: bytearray, value: int) -> None:
    """Append `value` as a LEB128 integer of any size."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _get(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("replay token is damaged: it ends in the middle")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position, value
        shift += 7
