"""Makes the engines of one machine on /dev/kvm."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from vtlkit.engine.api import Engine
from vtlkit.engine.devkvm.engine import DevKvmEngine
from vtlkit.engine.devkvm.processor import SharedTime
from vtlkit.engine.devkvm.quirks import Quirks
from vtlkit.engine.devkvm.quirks import examine as examine_quirks
from vtlkit.engine.devkvm.system import PATH, examine, open_kvm
from vtlkit.engine.devkvm.vcpu import KernelVcpu

_QUIRKS: Final[dict[str, Quirks]] = {}
"""By device: a kernel does not change while we run."""


class DevKvmFactory:
    """`EngineFactory` of the host's KVM. Engines share RAM blocks and nothing else: each has a kernel VM of its own."""

    name = "kvm"

    def __init__(self, path: str = PATH, *, emulate_no_execute: bool = True) -> None:
        """`emulate_no_execute`: make accesses to memory that may not be executed in the guest's stead, as KVM cannot
        say that; else such memory ends the run.

        Raises:
            EngineError: one line: why the device cannot be used.
        """
        self._path = path
        self._fd = open_kvm(path)
        try:
            self.capabilities = replace(examine(self._fd), emulates_no_execute=emulate_no_execute)
        except BaseException:
            os.close(self._fd)
            raise
        self._engines: list[DevKvmEngine] = []
        self._tsc_khz = 0
        self.time = SharedTime(lambda: KernelVcpu(self._fd, self.capabilities))

    @property
    def tsc_khz(self) -> int:
        """The frequency of the host's time-stamp counter, which is the guests'."""
        if not self._tsc_khz:
            vcpu = KernelVcpu(self._fd, self.capabilities)
            self._tsc_khz = vcpu.tsc_khz
            vcpu.close()
        return self._tsc_khz

    @property
    def quirks(self) -> Quirks:
        """How this KVM differs from a processor."""
        found = _QUIRKS.get(self._path)
        if found is None:
            found = _QUIRKS[self._path] = examine_quirks(lambda: self._engine("probe"))
        return found

    def _engine(self, name: str) -> DevKvmEngine:
        return DevKvmEngine(self._fd, self.capabilities, name, self.time)

    def create(self, vcpu_name: str) -> Engine:
        quirks = self.quirks
        engine = self._engine(vcpu_name)
        engine.steps_for_windows = quirks.late_windows
        self._engines.append(engine)
        return engine

    def counts_instructions(self) -> bool:
        return False

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._engines.clear()
        self.time.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
