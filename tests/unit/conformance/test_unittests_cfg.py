"""Every entry of a unittests.cfg becomes a runnable test with the right arguments, or a reason not to run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.emulators import QemuTcg, Vtlkit, tcg_parameters
from tests.conformance.unittests_cfg import ConfigError, Entry, PlannedTest, parse, plan, reason_not_to_run

CONFIG = """\
# comment
[x2apic]
file = apic.flat
smp = 2
qemu_params = -cpu qemu64,+x2apic -m 2048
timeout = 30
groups = apic slow

#[init]
#file = init.flat

[args]
file=sieve.flat
test_args = 'one "two" three'
timeout = 10s
[clock]
file = kvmclock_test.flat
test_args = "10000000 `date +%s`"
[old]
file = msr.flat
extra_params = -append direct -cpu host,hv_passthrough -device hyperv-testdev
[i386]
arch = i386
file = taskswitch.flat
[manual]
file = apic.flat
groups = nodefault
[nested]
file = vmx.flat
[svm]
file = svm.flat
qemu_params = -cpu max,+svm
[svm_no_npt]
file = svm.flat
test_args = "-pause_filter_test"
qemu_params = -cpu max,+svm,-npt -m 4g
[svm_unsupported]
file = svm.flat
qemu_params = -cpu max,+svm,-rdtscp
[hosts]
file = apic.flat
check = /sys/module/kvm/parameters/x=Y
[clocksource]
file = apic.flat
check = /sys/devices/system/clocksource/clocksource0/current_clocksource=tsc
[shell]
file = apic.flat
test_args = `uname -r`
[absent]
file = absent.flat
[many]
file = apic.flat
qemu_params = \"\"\"-cpu \\
max\"\"\"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "x86").mkdir()
    hyperv = tuple(f"hyperv_{name}" for name in ("synic", "connections", "stimer", "clock"))
    for name in ("apic", "sieve", "kvmclock_test", "msr", "vmx", "svm", "dummy", "init", "smptest", *hyperv):
        (tmp_path / "x86" / f"{name}.flat").touch()
    return tmp_path


def planned(checkout: Path) -> tuple[dict[str, PlannedTest], dict[str, str]]:
    tests, not_run = plan(checkout, parse(CONFIG))
    return {test.name: test for test in tests}, {item.name: item.reason for item in not_run}


def test_sections_are_read_with_their_values() -> None:
    entries = {entry.name: entry for entry in parse(CONFIG)}
    assert entries["x2apic"] == Entry(
        "x2apic", "apic.flat", "2", qemu_params="-cpu qemu64,+x2apic -m 2048", groups=("apic", "slow"), timeout="30"
    )
    assert "init" not in entries
    assert entries["many"].qemu_params.split() == ["-cpu", "max"]


def test_every_entry_is_run_or_has_a_reason(checkout: Path) -> None:
    tests, reasons = planned(checkout)
    assert {entry.name for entry in parse(CONFIG)} <= tests.keys() | reasons.keys()
    assert set(reasons) == {"i386", "manual", "nested", "svm", "svm_unsupported", "hosts", "shell", "absent"}
    assert "nested virtualisation" in reasons["nested"]
    assert tests["svm_no_npt"].nested
    assert tests["svm_no_npt"].arguments == "-pause_filter_test -latency_* -svm_lbrv_* -svm_exception_test"
    assert not tests["x2apic"].nested
    assert reasons["absent"] == "x86/absent.flat is not built"


def test_rows_are_added_to_those_of_the_file(checkout: Path) -> None:
    tests, _ = planned(checkout)
    assert {f"smptest_{cpus}cpus" for cpus in (1, 4, 5, 6, 7, 8)} | {"dummy", "init"} <= tests.keys()
    assert tests["smptest_8cpus"].cpus == 8
    assert {f"hyperv_{name}_{cpus}cpus" for name in ("synic", "connections", "stimer", "clock") for cpus in (1, 4)} <= (
        tests.keys()
    )
    assert tests["hyperv_stimer_4cpus_direct"].arguments == "direct"
    assert tests["init"].reboots


def test_arguments_lose_their_shell_quotes(checkout: Path) -> None:
    tests, _ = planned(checkout)
    assert tests["args"].arguments == 'one "two" three'
    assert tests["args"].timeout_seconds == 10
    assert tests["clock"].arguments == "10000000 1700000000"
    assert tests["old"].arguments == "direct"


def test_memory_is_mapped_and_the_rest_is_named(checkout: Path) -> None:
    tests, _ = planned(checkout)
    assert tests["x2apic"].memory == "2048"
    assert tests["x2apic"].unmapped == ("-cpu qemu64,+x2apic",)
    assert tests["x2apic"].timeout_seconds == 30
    assert tests["args"].timeout_seconds == 10
    assert tests["clock"].timeout_seconds == 90


def test_commands(checkout: Path) -> None:
    tests, _ = planned(checkout)
    ours = Vtlkit(extra=("--seed", "7")).command(tests["x2apic"], 30)
    assert ours[1:4] == ["-m", "vtlkit", "run"]
    assert ours[4:] == [
        *(str(checkout / "x86" / "apic.flat"), "--cpus", "2", "--memory", "2048M", "--timeout", "30", "--seed", "7")
    ]
    assert Vtlkit().command(tests["clock"], 90)[-4:] == ["--append", "10000000 1700000000", "--timeout", "90"]
    theirs = QemuTcg().command(tests["old"], 90)
    assert theirs[-6:] == ["-append", "direct", "-cpu", "max", "-device", "hyperv-testdev"]
    assert "--no-reboot" in theirs
    assert "--no-reboot" not in QemuTcg().command(tests["init"], 90)


def test_parameters_that_only_kvm_understands_are_left_out() -> None:
    assert tcg_parameters(("-enable-kvm", "-cpu", "host,migratable=no")) == ["-cpu", "max"]
    assert tcg_parameters(()) == ["-cpu", "max"]
    assert tcg_parameters(("-cpu", "qemu64,-pcid")) == ["-cpu", "qemu64,-pcid"]


@pytest.mark.parametrize("text", ["file = a.flat\n", "[a]\nnonsense\n", '[a]\nqemu_params = """-cpu\n'])
def test_another_format_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"unittests\.cfg:\d"):
        parse(text)


def test_the_hosts_clocksource_is_no_reason(checkout: Path) -> None:
    (entry,) = (entry for entry in parse(CONFIG) if entry.name == "clocksource")
    assert reason_not_to_run(entry, checkout) is None
