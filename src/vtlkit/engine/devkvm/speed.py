"""Whether a KVM executes guest code or emulates it, found out by a guest of two instructions.

Kernels that keep guests apart by page tables alone execute user mode and emulate kernel mode, at a hundredth of the
speed and without floating point; nothing that KVM tells of itself says so.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Final

from vtlkit.engine.api import Hlt
from vtlkit.engine.devkvm.factory import DevKvmFactory
from vtlkit.engine.probe import HLT, XORPS, flat

_PROBE_S: Final = 2.0


@cache
def emulates_kernel_mode() -> bool:
    """Whether SSE at CPL 0 is more than this KVM can execute.

    Raises:
        EngineError: it cannot be used at all.
    """
    factory = DevKvmFactory()
    try:
        engine = factory.create("probe")
        flat(engine, XORPS + HLT)
        # No guest of two instructions takes that long; a kernel that fails in another way shall not hang us.
        alarm = threading.Timer(_PROBE_S, engine.kick)
        alarm.start()
        try:
            return type(engine.run(None)) is not Hlt
        finally:
            alarm.cancel()
            alarm.join()
    finally:
        factory.close()
