"""How a KVM executes guests, where nothing that it says of itself tells: found out by guests of a few instructions.

Kernels that keep guests apart by page tables alone execute user mode and emulate kernel mode, in batches, at a
hundredth of the speed and without floating point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vtlkit.engine.api import Exit, Hlt, InterruptWindow
from vtlkit.engine.probe import HLT, XORPS, flat

if TYPE_CHECKING:
    from vtlkit.engine.devkvm.engine import DevKvmEngine

_PROBE_S: Final = 2.0
_SHORT_WINDOW: Final = b"\xfb\x90\xfa"
"""STI, NOP, CLI: an interrupt that waits is taken before the CLI."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """What is different from a processor."""

    emulates_kernel_mode: bool
    """SSE at CPL 0 is more than this KVM can execute."""
    late_windows: bool
    """A short interrupt window is missed: it has to be stepped for."""


def examine(new_engine: Callable[[], DevKvmEngine]) -> Quirks:
    """Try it out."""
    sse, window = new_engine(), new_engine()
    try:
        window.request_interrupt_window(True)
        return Quirks(
            emulates_kernel_mode=type(_try(sse, XORPS + HLT)) is not Hlt,
            late_windows=type(_try(window, _SHORT_WINDOW + HLT)) is not InterruptWindow,
        )
    finally:
        sse.close()
        window.close()


def _try(engine: DevKvmEngine, code: bytes) -> Exit:
    flat(engine, code)
    # No guest of a few instructions takes that long; a kernel that fails in another way shall not hang us.
    alarm = threading.Timer(_PROBE_S, engine.kick)
    alarm.start()
    try:
        return engine.run(None)
    finally:
        alarm.cancel()
        alarm.join()
