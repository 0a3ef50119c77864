"""The text of an event as a template, from which both the writer and the reader of that text are made.

Counterpart: TP_printk of include/trace/trace_events.h, which has no way back. A template is text with fields in braces:

* `{field}`: a decimal number, or a word
* `{field:x}`: 0x and hexadecimal digits; `{field:016x}`: so many at least; `{field:h}`: the digits alone
* `{field?yes}` and `{field?yes|no}`: text for a flag that is set, and for one that is not
* `{field?text %d}`: text with the number, nothing if the number is 0

The promise: `parse` undoes `render` for every value, as long as a word has no line break in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Final

Value = int | str | bool

_PART: Final = re.compile(r"\{(\w+)(?::(\w+))?(?:\?([^}|]*)(?:\|([^}]*))?)?\}")


class _Field:
    """One field of a template. `kind` is the type of its values; `conversion` is what stands for it in a format."""

    __slots__ = ("_no", "_yes", "conversion", "kind", "name")

    def __init__(self, name: str, kind: type, form: str, yes: str | None, no: str) -> None:
        self.name = name
        self.kind = kind
        self._yes, self._no = yes, no
        self.conversion = "%s" if not form else "%x" if form == "h" else f"0x%{form}"

    @property
    def is_flag(self) -> bool:
        """Whether its value is shown by `flag`."""
        return self._yes is not None

    def flag(self, value: Value) -> str:
        """Text for a flag or an optional number."""
        assert self._yes is not None
        if not value:
            return self._no
        return self._yes % value if "%d" in self._yes else self._yes

    def pattern(self) -> str:
        """What it looks like: one group."""
        if self._yes is None:
            if self.kind is str:
                return "(.*?)"
            return "(-?[0-9]+)" if self.conversion == "%s" else "((?:0x)?[0-9a-f]+)"
        yes = re.escape(self._yes).replace("%d", "[0-9]+")
        return f"({yes}|{re.escape(self._no)})"

    def value(self, text: str) -> Value:
        """Undo the rendering."""
        if self._yes is None:
            if self.kind is str:
                return text
            return int(text) if self.conversion == "%s" else int(text, 16)
        if "%d" in self._yes:
            return int(text[self._yes.index("%d") :]) if text else 0
        return text == self._yes


class Template:
    """See the module."""

    __slots__ = ("_fields", "_flags", "_format", "_get", "_regex")

    def __init__(self, text: str, kinds: Mapping[str, type]) -> None:
        """`kinds`: the type of each field, by name. An optional number ends its text."""
        self._fields: list[_Field] = []
        self._format, pattern, end = "", "", 0
        for part in _PART.finditer(text):
            name, form, yes, no = part.groups()
            literal = text[end : part.start()]
            field = _Field(name, kinds[name], form or "", yes, no or "")
            self._fields.append(field)
            self._format += literal.replace("%", "%%") + field.conversion
            pattern += re.escape(literal) + field.pattern()
            end = part.end()
        self._format += text[end:].replace("%", "%%")
        self._regex = re.compile(pattern + re.escape(text[end:]))
        self._flags = [(number, field) for number, field in enumerate(self._fields) if field.is_flag]
        names = [field.name for field in self._fields]
        self._get: Callable[[object], Any] = attrgetter(*names)

    def render(self, event: object) -> str:
        """The text of an object that has the fields as attributes."""
        values = self._get(event)
        if self._flags:
            values = list(values) if len(self._fields) > 1 else [values]
            for number, field in self._flags:
                values[number] = field.flag(values[number])
            values = tuple(values)
        text: str = self._format % values
        return text

    def parse(self, text: str) -> dict[str, Value] | None:
        """The fields by name, or None if this is not such a text."""
        found = self._regex.fullmatch(text)
        if found is None:
            return None
        return {field.name: field.value(part) for field, part in zip(self._fields, found.groups(), strict=True)}
