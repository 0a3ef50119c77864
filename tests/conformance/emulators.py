"""Run one kvm-unit-tests image in a process of its own: under `vtlkit run`, or QEMU's TCG as the reference.

Counterpart: kvm-unit-tests' x86/run. The promise: a run ends within its time limit plus a short grace, leaves no
process behind, and its console and standard error are on disk, whole, before its outcome is reported.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tests.conformance.console import KVM_GAVE_UP, STATUS_TIMEOUT, Outcome, judge
from tests.conformance.unittests_cfg import PlannedTest

GRACE_SECONDS = 15
"""How long an emulator may take past the time limit it was given before it is killed."""
POLL_SECONDS = 0.2
START_SECONDS = 20
"""How long QEMU may take to start and end, when it is tried out."""


class Emulator(Protocol):
    """What a column of the table is made by."""

    @property
    def name(self) -> str:
        """Column title, and suffix of the log files."""

    def command(self, test: PlannedTest, timeout_seconds: int) -> list[str]:
        """The argument vector that runs `test`."""

    def version(self) -> str:
        """One line that says what was measured."""


@dataclass(frozen=True, slots=True)
class Vtlkit:
    """`vtlkit run`, by the Python that runs this program, so that the checkout under test is the one measured."""

    name: str = "vtlkit"
    extra: tuple[str, ...] = ()

    def command(self, test: PlannedTest, timeout_seconds: int) -> list[str]:
        """As a user types it; options that the entry does not need are not given."""
        words = [sys.executable, "-m", "vtlkit", "run", str(test.image), "--cpus", str(test.cpus)]
        if test.memory is not None:
            words += ["--memory", _memory_size(test.memory)]
        if test.nested:
            words += ["--nested"]
        if test.arguments:
            words += ["--append", test.arguments]
        return [*words, "--timeout", str(timeout_seconds), *self.extra]

    def version(self) -> str:
        """Package version and, in a git checkout, the commit."""
        import vtlkit

        extra = f" {' '.join(self.extra)}" if self.extra else ""
        return f"vtlkit {vtlkit.__version__}{commit_of(Path(__file__).parent)}{extra}"


@dataclass(frozen=True, slots=True)
class QemuTcg:
    """`qemu-system-x86_64 -accel tcg`, with the entry's own parameters and `-cpu max` where it names no CPU model."""

    name: str = "qemu"
    binary: str = "qemu-system-x86_64"

    def command(self, test: PlannedTest, timeout_seconds: int) -> list[str]:
        """x86/run's command, without the parameters that only KVM understands."""
        words = [self.binary, "-nodefaults", "-accel", "tcg", "-display", "none", "-serial", "stdio"]
        words += ["-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-device", "pci-testdev"]
        if not test.reboots:
            words += ["--no-reboot"]
        if test.memory is not None:
            words += ["-m", test.memory]
        words += ["-kernel", str(test.image), "-smp", str(test.cpus)]
        if test.arguments:
            words += ["-append", test.arguments]
        return words + tcg_parameters(test.qemu_parameters)

    def version(self) -> str:
        """First line of --version."""
        done = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True)
        return f"{done.stdout.splitlines()[0]}, TCG"

    @classmethod
    def find(cls) -> QemuTcg | None:
        """QEMU on PATH, or None."""
        return cls() if shutil.which(cls.binary_name()) else None

    @staticmethod
    def binary_name() -> str:
        """Name looked for on PATH."""
        return "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class QemuKvm:
    """`qemu-system-x86_64 -accel kvm`, with the entry's own parameters and `-cpu max` where it names no CPU model."""

    name: str = "qemu-kvm"
    binary: str = "qemu-system-x86_64"
    without: tuple[str, ...] = ()
    """CPU features that must be off for this QEMU to start on this kernel."""

    def command(self, test: PlannedTest, timeout_seconds: int) -> list[str]:
        """As the column of QEMU's TCG, with the parameters that only KVM understands."""
        plain = replace(test, qemu_parameters=())
        words = QemuTcg(binary=self.binary).command(plain, timeout_seconds)[:-2]  # without its -cpu
        words[words.index("tcg")] = "kvm"
        parameters = [word for word in test.qemu_parameters if word != "-enable-kvm"]
        if "-cpu" not in parameters:
            parameters += ["-cpu", "max"]
        index = parameters.index("-cpu") + 1
        if parameters[index].partition(",")[0] in ("host", "max"):
            parameters[index] = ",".join((parameters[index], *self.without))
        return words + parameters

    def version(self) -> str:
        """First line of --version, and what was added to the CPU models."""
        changes = f", CPU models host and max with {','.join(self.without)}" if self.without else ""
        return f"{QemuTcg(binary=self.binary).version().removesuffix(', TCG')}, -accel kvm{changes}"

    @classmethod
    def find(cls) -> QemuKvm | None:
        """QEMU on PATH as it starts on this machine's /dev/kvm, or None. Some kernels refuse an MSR that QEMU sets."""
        if shutil.which(QemuTcg.binary_name()) is None:
            return None
        for without in ((), ("arch-capabilities=off",)):
            if (found := cls(without=without)).starts():
                return found
        return None

    def starts(self) -> bool:
        """Whether a machine with `-cpu max` comes up, and ends when told to."""
        model = ",".join(("max", *self.without))
        words = [self.binary, "-nodefaults", "-accel", "kvm", "-display", "none", "-S", "-monitor", "stdio"]
        try:
            done = subprocess.run(
                [*words, "-cpu", model], input=b"quit\n", capture_output=True, check=False, timeout=START_SECONDS
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


def tcg_parameters(parameters: tuple[str, ...]) -> list[str]:
    """Adapt an entry's QEMU parameters to TCG: no -enable-kvm, no host CPU model, no pass-through of KVM's Hyper-V."""
    words = [word for word in parameters if word != "-enable-kvm"]
    for index, word in enumerate(words):
        if index and words[index - 1] == "-cpu":
            features = [part for part in word.split(",") if part not in ("hv_passthrough", "migratable=no")]
            features[0] = "max" if features[0] == "host" else features[0]
            words[index] = ",".join(features)
    return words if "-cpu" in words else [*words, "-cpu", "max"]


def _memory_size(qemu_size: str) -> str:
    """QEMU's -m counts in MiB where no suffix is given; vtlkit's --memory wants the suffix."""
    return f"{qemu_size}M" if qemu_size.isdigit() else qemu_size.upper()


def commit_of(directory: Path) -> str:
    """` (commit abbreviated)` of the git checkout around `directory`, or nothing where there is none."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return f" (commit {done.stdout.strip()})" if done.returncode == 0 else ""


def limit_seconds(test: PlannedTest, timeout_scale: float) -> int:
    """What the emulator is given."""
    return max(1, round(test.timeout_seconds * timeout_scale))


def run_test(
    test: PlannedTest, emulator: Emulator, log_directory: Path, timeout_scale: float, stop: threading.Event
) -> Outcome:
    """Run one test to its end and judge it. Logs: NAME.EMULATOR.out and .err in `log_directory`.

    Setting `stop` from another thread ends it within POLL_SECONDS; its outcome then means nothing.
    """
    limit = limit_seconds(test, timeout_scale)
    stem = log_directory / f"{test.name}.{emulator.name}"
    out_path, err_path = stem.with_name(stem.name + ".out"), stem.with_name(stem.name + ".err")
    own_limit = isinstance(emulator, QemuTcg | QemuKvm)  # QEMU has no time limit of its own: this one ends it on time
    with out_path.open("wb") as out, err_path.open("wb") as err:
        begin = time.perf_counter()
        process = subprocess.Popen(
            emulator.command(test, limit), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            status = _wait(process, limit if own_limit else limit + GRACE_SECONDS, stop, err_path)
        finally:
            _end(process)
        seconds = time.perf_counter() - begin
    console = out_path.read_bytes().decode("utf-8", "replace")
    errors = err_path.read_bytes().decode("utf-8", "replace")
    return judge(console, errors, status, seconds)


def _wait(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event, errors: Path) -> int:
    """The exit status, or STATUS_TIMEOUT where `seconds` pass, `stop` is set, or KVM has given up before it ends."""
    deadline = time.perf_counter() + seconds
    gave_up = False
    while not stop.is_set() and (left := deadline - time.perf_counter()) > 0:
        try:
            return process.wait(min(left, POLL_SECONDS))
        except subprocess.TimeoutExpired:
            if gave_up:  # it has had POLL_SECONDS to end by itself, as vtlkit does
                break
            gave_up = KVM_GAVE_UP.search(errors.read_bytes().decode("utf-8", "replace")) is not None
    return STATUS_TIMEOUT


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of the emulator's session running, whatever ended the wait."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # every process of the session has ended, and been waited for
    process.wait()
