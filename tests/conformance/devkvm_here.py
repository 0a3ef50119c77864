"""Whether /dev/kvm can be used on this machine, for tests that need it."""

from __future__ import annotations

from functools import cache

from vtlkit.engine.api import EngineError
from vtlkit.engine.devkvm import DevKvmFactory


@cache
def why_not() -> str | None:
    """The reason to skip; None where it can be used."""
    try:
        DevKvmFactory().close()
    except EngineError as error:
        return str(error)
    return None
