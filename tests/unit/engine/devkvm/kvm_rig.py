"""Engines with a guest of a few bytes."""

from __future__ import annotations

from typing import Final

from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.devkvm.engine import DevKvmEngine
from vtlkit.engine.probe import flat

PATIENCE_S: Final = 60.0
"""Without an answer for so long a kick is lost: an entry takes microseconds."""
FOR_EVER: Final = b"\xeb\xfe"
PAGE: Final = 0x2000


def flat_engine(factory: DevKvmFactory, code: bytes) -> DevKvmEngine:
    engine = factory.create("vcpu")
    assert isinstance(engine, DevKvmEngine)
    flat(engine, code)
    return engine
