"""`--hv`: which parts of the Hyper-V interface a guest is offered, in the words of QEMU's -cpu option."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vtlkit.cli.quantities import parse_number

if TYPE_CHECKING:
    from vtlkit.kvm.hyperv.features import HvFeatures

HvOption = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Hyper-V features: all, none, or names such as hv-vpindex,hv-synic; all,-hv-stimer leaves one out. "
        "'vtlkit info' lists them.",
    ),
]
"""`--hv`, to be read by `parse_hv`."""
_EVERYTHING: Final = ("all", "hv-passthrough")
_NOTHING: Final = "none"
_ALWAYS: Final = ("hv-enforce-cpuid",)
"""Properties of QEMU's that can not be switched off here: to ask for them changes nothing."""
_ALIASES: Final = {"hv-apicv": "hv-avic"}


def parse_hv(text: str) -> HvFeatures | None:
    """The selection that `text` makes; None is no Hyper-V interface at all.

    Items are separated by commas and taken from left to right, beginning with nothing: `all`, `hv-NAME`, `-hv-NAME`
    to leave one out again with those that need it, `hv-NAME=VALUE`, and QEMU's `hv-NAME=on` and `=off`.

    Raises:
        ValueError: one line on what is wrong and what to write.
    """
    from vtlkit.kvm.errors import KvmError
    from vtlkit.kvm.hyperv.features import EVERYTHING, NOTHING

    if text == _NOTHING:
        return None
    features = NOTHING
    for item in text.split(","):
        features = EVERYTHING if item in _EVERYTHING else features.changed(**_one(item, features))
    try:
        features.check()
    except KvmError as error:
        raise ValueError(error.message) from None
    return features


def _one(item: str, features: HvFeatures) -> Mapping[str, Any]:
    """What one item changes."""
    from vtlkit.kvm.hyperv.features import NOTHING, REFUSED, SWITCHES, VALUES, spelled

    left_out = item.startswith("-")
    word, has_value, value = item.removeprefix("-").partition("=")
    word = _ALIASES.get(word, word)
    if word in REFUSED:
        raise ValueError(f"{word} can not be had: {REFUSED[word]}")
    names = {spelled(name): name for name in (*SWITCHES, *VALUES)}
    if word in _ALWAYS:
        if left_out or value not in ("", "on"):
            raise ValueError(f"{word} is always on")
        return {}
    if word not in names:
        raise ValueError(_unknown(word, names))
    name = names[word]
    if left_out:
        if has_value:
            raise ValueError(f"'{item}': what is left out has no value; write -{word}")
        if features == NOTHING:
            raise ValueError(f"'{item}' leaves out of nothing: begin with all, as in all,{item}")
        return {name: getattr(NOTHING, name)} if name in VALUES else _without(name)
    if name in VALUES:
        return {name: _value(word, name, value)}
    if has_value and value not in ("on", "off"):
        raise ValueError(f"{word} is on or off, not '{value}'")
    return _without(name) if value == "off" else {name: True}


def _without(name: str) -> Mapping[str, bool]:
    """A feature off, and all that stand on it."""
    from vtlkit.kvm.hyperv.features import NEEDS

    gone = {name: False}
    while more := {
        other: False for other, needs in NEEDS.items() if other not in gone and not gone.keys().isdisjoint(needs)
    }:
        gone |= more
    return gone


def _value(word: str, name: str, text: str) -> int | str:
    from vtlkit.kvm.hyperv.features import MAXIMA

    if not text:
        raise ValueError(f"{word} takes a value: write {word}={_EXAMPLES.get(name, '1')}")
    if name not in MAXIMA:
        return text
    number = parse_number(text)
    if number is None:
        raise ValueError(f"{word}: '{text}' is no number; write {word}={_EXAMPLES.get(name, '1')}")
    return number


_EXAMPLES: Final = {"spinlocks": "0xfff", "vendor_id": "Name"}


def _unknown(word: str, names: Mapping[str, str]) -> str:
    from vtlkit.kvm.hyperv.features import PREFIX

    if word == _NOTHING:
        return "none stands alone: it is no Hyper-V interface at all"
    if not word:
        return "an item is empty; 'vtlkit info' lists the features"
    known = {name.removeprefix(PREFIX): name for name in names} | {word: word for word in (*_EVERYTHING, _NOTHING)}
    near = difflib.get_close_matches(word.lower().replace("_", "-").removeprefix(PREFIX), known, 1)
    hint = f"did you mean {known[near[0]]}?" if near else "'vtlkit info' lists them"
    return f"there is no feature '{word}': {hint}"
