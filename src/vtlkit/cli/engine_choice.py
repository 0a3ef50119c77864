"""Which engine `--engine auto` means in real time: /dev/kvm where it can be used and is faster than the embedded CPU.

Measured once, in a few milliseconds, by the same loop on both; a KVM that emulates kernel mode is slower by far, and
one that does not is faster by far, so that the measurement need not be good.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtlkit.engine.api import EngineFactory

_TURNS: Final = 20_000
_INSTRUCTIONS: Final = 2 * _TURNS


@dataclass(frozen=True, slots=True)
class KvmVerdict:
    """What /dev/kvm is worth here; `reason` is one line, for people."""

    usable: bool
    preferred: bool
    reason: str
    lacks: tuple[str, ...] = ()
    """What this KVM lacks, and what that costs: one line each."""


@cache
def judge_kvm() -> KvmVerdict:
    """Whether /dev/kvm can be used, and whether it is the better engine in real time."""
    from vtlkit.engine.api import EngineError
    from vtlkit.engine.devkvm import DevKvmFactory
    from vtlkit.engine.unicorn import UnicornFactory

    try:
        factory = DevKvmFactory()
        lacks, emulated = factory.capabilities.lacks, factory.quirks.emulates_kernel_mode
        kvm = _mips(factory)
    except EngineError as error:
        return KvmVerdict(False, False, str(error))
    try:
        embedded = _mips(UnicornFactory(counting=False))
    except EngineError:
        return KvmVerdict(True, True, f"{kvm:,.0f} million instructions a second at CPL 0", lacks)
    speeds = f"{kvm:,.0f} million instructions a second at CPL 0, the embedded CPU {embedded:,.0f}"
    if emulated:
        return KvmVerdict(
            True, False, f"slow KVM, it emulates kernel mode and has no floating point there: {speeds}", lacks
        )
    if kvm <= embedded:
        return KvmVerdict(True, False, f"slow KVM: {speeds}", lacks)
    return KvmVerdict(True, True, speeds, lacks)


def _mips(factory: EngineFactory) -> float:
    """Million instructions a second; of two runs the second, as the first fills caches. Closes the factory."""
    from vtlkit.engine.probe import flat, loop

    try:
        engine = factory.create("speed")
        flat(engine, loop(_TURNS))
        start = engine.regs.rip
        seconds = 0.0
        for _ in range(2):
            engine.regs.rip = start
            begin = time.perf_counter()
            engine.run(None)
            seconds = time.perf_counter() - begin
        return _INSTRUCTIONS / seconds / 1e6
    finally:
        factory.close()
