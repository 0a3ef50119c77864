"""Makes the engines of one machine, and keeps what they share: the one physical CPU they take turns on."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from vtlkit.engine.api import Engine
from vtlkit.engine.unicorn.binding import Library, library
from vtlkit.engine.unicorn.engine import UnicornEngine
from vtlkit.engine.unicorn.selfcheck import check_once

_QUANTUM_S: Final = 0.001
"""How long a waiting engine lets another one run before it asks for its turn."""


class PhysicalCpu:
    """The processor that the engines of a machine share on real threads: LOCK-prefixed instructions are atomic because
    only one instance runs at a time. First come, first served; a wait of more than a quantum makes the holder exit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._waiting: deque[Engine] = deque()
        self._holder: Engine | None = None

    def acquire(self, engine: Engine) -> None:
        """Block until it is `engine`'s turn."""
        with self._turn:
            if self._holder is None and not self._waiting:
                self._holder = engine
                return
            self._waiting.append(engine)
            while self._holder is not None or self._waiting[0] is not engine:
                if not self._turn.wait(_QUANTUM_S) and self._waiting[0] is engine and self._holder is not None:
                    self._holder.kick()
            self._waiting.popleft()
            self._holder = engine

    def release(self, engine: Engine) -> None:
        """End the turn."""
        with self._turn:
            assert self._holder is engine
            self._holder = None
            if self._waiting:
                self._turn.notify_all()


class UnicornFactory:
    """`EngineFactory` of the embedded engine.

    `counting`: count instructions, so that budgets are exact (deterministic runs); otherwise the translator chains
    blocks freely and only kicks end a run. `threaded`: the engines run on several threads.
    """

    name = "unicorn"

    def __init__(self, *, counting: bool = True, threaded: bool = False) -> None:
        self.lib: Library = library()
        check_once(self.lib)
        self._counting = counting
        self.physical = PhysicalCpu() if threaded else None
        self.last_entered: Engine | None = None
        self._engines: list[UnicornEngine] = []

    def create(self, vcpu_name: str) -> Engine:
        engine = UnicornEngine(self, vcpu_name)
        self._engines.append(engine)
        return engine

    def counts_instructions(self) -> bool:
        return self._counting

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._engines.clear()
