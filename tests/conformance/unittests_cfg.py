"""The tests of a kvm-unit-tests checkout: its x86/unittests.cfg, what of it can run here, and with which arguments.

Counterpart: `for_each_unittest` in kvm-unit-tests' scripts/common.bash, which defines the format. The promise: every
entry of the file ends up either in the plan or in the list of tests not run, with its reason. None is dropped silently.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DEFAULT_TIMEOUT_SECONDS = 90
"""What scripts/runtime.bash gives a test without a `timeout` of its own."""

_KEYS = (
    "file",
    "smp",
    "test_args",
    "qemu_params",
    "extra_params",
    "groups",
    "arch",
    "machine",
    "check",
    "accel",
    "timeout",
)
_NESTED = {"svm.flat"}
"""Run with SVM offered to the guest, which has no nested paging."""
_NEEDS_NESTED = {
    "svm_npt.flat": "needs nested paging (SVM) exposed to the guest",
    "vmx.flat": "needs nested virtualisation by VMX exposed to the guest",
}
_NESTED_MEMORY = "128M"
"""One of its sub-tests goes through every page that there is."""
_LEFT_OUT = "-latency_* -svm_lbrv_* -svm_exception_test"
"""Sub-tests of svm.flat that run L2 a million times each and look at nothing but the time, and those that end the run
for what the processor has not: last-branch records, and alignment checks."""
_NEEDS_HARDWARE = {
    "pmu.flat": "needs a hardware PMU",
    "pmu_lbr.flat": "needs a hardware PMU",
    "pmu_pebs.flat": "needs a hardware PMU",
    "intel-iommu.flat": "needs the q35 board with a virtual IOMMU",
    "vmware_backdoors.flat": "needs KVM's enable_vmware_backdoor module parameter",
}
_HOST_CLOCKSOURCE = "/sys/devices/system/clocksource/"
_DATE_COMMAND = "`date +%s`"


class ConfigError(Exception):
    """The file is not in the format of kvm-unit-tests' unittests.cfg; the text says where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One section of unittests.cfg, as text."""

    name: str
    file: str = ""
    smp: str = "1"
    test_args: str = ""
    qemu_params: str = ""
    groups: tuple[str, ...] = ()
    arch: str = ""
    machine: str = ""
    check: str = ""
    accel: str = ""
    timeout: str = ""


@dataclass(frozen=True, slots=True)
class PlannedTest:
    """One run: image, number of CPUs, guest arguments, memory and time limit; both columns are made from it."""

    name: str
    image: Path
    cpus: int
    arguments: str
    memory: str | None
    timeout_seconds: int
    qemu_parameters: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()
    """QEMU parameters of the entry (CPU model, machine options) that `vtlkit run` has no counterpart for."""
    nested: bool = False
    """The guest runs guests of its own."""
    reboots: bool = False
    """The guest resets itself on purpose: QEMU must not be started with --no-reboot."""


@dataclass(frozen=True, slots=True)
class NotRun:
    """An entry that is left out, and why."""

    name: str
    reason: str


def parse(text: str) -> list[Entry]:
    """Parse unittests.cfg. Raises ConfigError for a line that is neither comment, section nor a known `key = value`."""
    entries: list[Entry] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, raw in lines:
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if section := re.fullmatch(r"\[(.+)\]", line):
            entries.append(Entry(section[1]))
            continue
        pair = re.fullmatch(r"(\w+)\s*=\s*(.*)", line)
        if pair is None or not entries:
            raise ConfigError(f"unittests.cfg:{number}: not a section, comment or 'key = value': {line}")
        key, value = pair[1], pair[2]
        if value.startswith('"""'):
            value = _multi_line(value[3:], lines, number)
        if key in _KEYS:
            entries[-1] = _with(entries[-1], key, value)
    return entries


def _multi_line(first: str, lines: Iterator[tuple[int, str]], number: int) -> str:
    parts = [first.rstrip("\\")]
    for _, line in lines:
        if line.rstrip().endswith('"""'):
            parts.append(line.rstrip()[:-3])
            return "\n".join(parts)
        parts.append(line.rstrip("\\"))
    raise ConfigError(f'unittests.cfg:{number}: the value has no closing """')


def _with(entry: Entry, key: str, value: str) -> Entry:
    if key == "groups":
        return replace(entry, groups=tuple(value.split()))
    if key == "extra_params":  # the name before test_args and qemu_params were split
        return replace(entry, qemu_params=value)
    changes: dict[str, Any] = {key: value}
    return replace(entry, **changes)


def plan(directory: Path, entries: Iterable[Entry]) -> tuple[list[PlannedTest], list[NotRun]]:
    """Turn entries into runnable tests, plus the extra rows that this project wants, and the list of those not run."""
    tests: list[PlannedTest] = []
    not_run: list[NotRun] = []
    for entry in (*entries, *_extra_entries()):
        reason = reason_not_to_run(entry, directory)
        if reason is None:
            tests.append(_test(entry, directory))
        else:
            not_run.append(NotRun(entry.name, reason))
    return tests, not_run


def _extra_entries() -> list[Entry]:
    """Rows beyond unittests.cfg: images that it does not list, SMP start-up from 1 to 8 CPUs (it has 2 and 3), and the
    Hyper-V tests with 1 and 4 CPUs (it has 2)."""
    smp = [Entry(f"smptest_{cpus}cpus", file="smptest.flat", smp=str(cpus)) for cpus in (1, 4, 5, 6, 7, 8)]
    hyperv = [
        Entry(
            f"{name}_{cpus}cpus" + ("_" + arguments if arguments else ""),
            file=f"{name}.flat",
            smp=str(cpus),
            test_args=arguments,
            qemu_params="-cpu host,hv_passthrough -device hyperv-testdev",
        )
        for name, arguments in (
            ("hyperv_synic", ""),
            ("hyperv_connections", ""),
            ("hyperv_stimer", ""),
            ("hyperv_stimer", "direct"),
            ("hyperv_clock", ""),
        )
        for cpus in (1, 4)
    ]
    return [Entry("dummy", file="dummy.flat"), Entry("init", file="init.flat"), *smp, *hyperv]


def reason_not_to_run(entry: Entry, directory: Path) -> str | None:
    """Why this entry cannot or must not run here, or None. Independent of the emulator under test."""
    if entry.arch == "i386":
        return "i386 only"
    if entry.file in _NEEDS_NESTED:
        return _NEEDS_NESTED[entry.file]
    if entry.file in _NESTED and "-rdtscp" in entry.qemu_params:
        return "needs a processor without RDTSCP and XSAVE"
    if entry.file in _NESTED and "-npt" not in entry.qemu_params and "pause_filter" not in entry.name:
        return "as svm_no_npt, with nested paging, which is not there"
    if entry.file in _NEEDS_HARDWARE:
        return _NEEDS_HARDWARE[entry.file]
    if "nodefault" in entry.groups:
        return "marked 'nodefault': manual run only"
    if entry.check and not entry.check.startswith(_HOST_CLOCKSOURCE):
        return f"wants the host's {entry.check}"
    if "`" in entry.test_args.replace(_DATE_COMMAND, ""):
        return "its arguments hold a shell command that this runner does not know"
    if not (directory / "x86" / entry.file).is_file():
        return f"x86/{entry.file} is not built"
    return None


def _test(entry: Entry, directory: Path) -> PlannedTest:
    parameters = shlex.split(entry.qemu_params)
    old_style_arguments = _take(parameters, "-append")
    memory = _take(parameters, "-m")
    nested = entry.file in _NESTED
    arguments = _guest_arguments(entry.test_args) or old_style_arguments or ""
    if nested:
        memory = _NESTED_MEMORY
        if arguments.startswith("-"):
            arguments += f" {_LEFT_OUT}"
    return PlannedTest(
        name=entry.name,
        image=directory / "x86" / entry.file,
        cpus=int(entry.smp),
        arguments=arguments,
        memory=memory,
        timeout_seconds=int(entry.timeout.removesuffix("s") or DEFAULT_TIMEOUT_SECONDS),
        qemu_parameters=tuple(parameters),
        unmapped=tuple(f"{a} {b}" if b else a for a, b in _options(parameters)),
        nested=nested,
        reboots=entry.file == "init.flat",
    )


def _take(parameters: list[str], option: str) -> str | None:
    """Remove `option VALUE` from the list, and return VALUE."""
    if option not in parameters:
        return None
    index = parameters.index(option)
    value = parameters[index + 1]
    del parameters[index : index + 2]
    return value


def _options(parameters: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pair each `-option` with the value behind it, if it has one."""
    option: str | None = None
    for word in parameters:
        if word.startswith("-"):
            if option is not None:
                yield option, ""
            option = word
        elif option is not None:
            yield option, word
            option = None
    if option is not None:
        yield option, ""


def _guest_arguments(text: str) -> str:
    """Undo the shell quoting of `test_args`. The date becomes a fixed one: a test's input must not change daily."""
    return " ".join(shlex.split(text.replace(_DATE_COMMAND, "1700000000")))
