"""Bad input ends `vtlkit` with status 2 and one clear line on standard error; no traceback, no output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import cli_rig
from tests.unit.vmm.loaders.image_rig import elf, multiboot_header, pvh_note
from vtlkit import guests
from vtlkit.cli.main import main

ENTRY = 0x100000
CODE = b"\xf4" * 16


def pvh(*segments: tuple[int, bytes, int]) -> bytes:
    return elf(64, segments, entry=ENTRY, note=pvh_note(ENTRY))


IMAGES = {
    "text": (b"#!/bin/sh\nexit 0\n" * 100, "not a boot image"),
    "empty": (b"", "is empty"),
    "truncated-elf": (guests.path("demo").read_bytes()[:2000], "truncated ELF file"),
    "elf-header-only": (guests.path("demo").read_bytes()[:64], "truncated ELF file"),
    "too-large": (pvh((ENTRY, CODE, 300 << 20)), "needs"),
    "overlapping": (pvh((ENTRY, CODE, 0x2000), (ENTRY + 0x1000, CODE, 0x1000)), "overlap"),
    "wrong-machine": (elf(64, [(ENTRY, CODE, 16)], entry=ENTRY, machine=183), "machine"),
    "broken-multiboot": (multiboot_header(1 << 16, [0x1000, 0x2000, 0, 0, 0x2000]), "bad multiboot image"),
}


def refused(done: cli_rig.Done, *parts: str, command: str = "vtlkit run") -> None:
    """The shape of every refusal, and words that this one must have."""
    assert done.status == 2, done.errors
    assert done.console == b""
    (line,) = done.error_lines
    assert line.startswith(f"{command}: ")
    for part in parts:
        assert part in line


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_none(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.img"
    path.write_bytes(IMAGES[name][0])
    refused(cli_rig.run(str(path)), path.name, IMAGES[name][1])


@pytest.mark.parametrize("where", ["nowhere.elf", "./nowhere.elf", "no/where.elf"])
def test_a_missing_file(where: str, tmp_path: Path) -> None:
    refused(cli_rig.run(where, cwd=tmp_path), "nowhere.elf" if "no/" not in where else "where.elf")


def test_a_name_that_is_no_guest_is_answered_with_those_that_are(tmp_path: Path) -> None:
    refused(cli_rig.run("demmo", cwd=tmp_path), "'demmo'", "bench, demo")


def test_a_directory(tmp_path: Path) -> None:
    refused(cli_rig.run(str(tmp_path)), "directory")


def test_an_image_larger_than_memory(tmp_path: Path) -> None:
    refused(cli_rig.run("demo", "--memory", "1M"), "demo")


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_an_initrd_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    initrd = tmp_path if kind == "directory" else tmp_path / "none"
    refused(cli_rig.run("demo", "--initrd", str(initrd)), "initrd", str(initrd))


def test_more_memory_than_there_is() -> None:
    refused(cli_rig.run("demo", "--memory", "1023G"), "memory")


def test_a_summary_that_cannot_be_written(tmp_path: Path) -> None:
    refused(cli_rig.run("demo", "--json", str(tmp_path / "no" / "file")), "--json", "No such file or directory")


@pytest.mark.tlfs("discovery.selection")
@pytest.mark.parametrize(
    ("features", "part"),
    [
        ("hv-stimr", "did you mean hv-stimer?"),
        ("hv-synic", "hv-synic needs hv-vpindex"),
        ("hv-spinlocks=many", "is no number"),
        ("all,hv-syndbg", "can not be had: there is no debugger to attach"),
    ],
)
def test_features_that_can_not_be_selected(features: str, part: str) -> None:
    refused(cli_rig.run("demo", f"--hv={features}"), "--hv: ", part)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["run"], ["missing argument 'GUEST'"]),
        (["run", "demo", "extra"], ["extra"]),
        (["run", "demo", "--cpus", "0"], ["--cpus", "'0'", "1 to 255"]),
        (["run", "demo", "--cpus", "256"], ["--cpus", "1 to 255"]),
        (["run", "demo", "--cpus", "-1"], ["--cpus", "1 to 255"]),
        (["run", "demo", "--cpus", "9" * 5000], ["--cpus", "1 to 255"]),
        (["run", "demo", "--cpus", "two"], ["--cpus", "'two'"]),
        (["run", "demo", "--cpus", "٣"], ["--cpus"]),
        (["run", "demo", "--vtls", "0"], ["--vtls", "1 to 16"]),
        (["run", "demo", "--vendor", "tdx"], ["--vendor", "'tdx'", "svm, vmx"]),
        (["run", "demo", "--vtls", "17"], ["--vtls", "1 to 16"]),
        (["run", "demo", "--memory", "0"], ["--memory", "less than 1M"]),
        (["run", "demo", "--memory", "256"], ["--memory", "less than 1M", "256M"]),
        (["run", "demo", "--memory", "1023K"], ["--memory", "less than 1M"]),
        (["run", "demo", "--memory", "1048577"], ["--memory", "multiple of 4K"]),
        (["run", "demo", "--memory", "16777216T"], ["--memory", "more than 1023G"]),
        (["run", "demo", "--memory", "9" * 5000], ["--memory", "no size"]),
        (["run", "demo", "--memory", "-1M"], ["--memory", "no size"]),
        (["run", "demo", "--memory", "lots"], ["--memory", "'lots' is no size"]),
        (["run", "demo", "--timeout", "0"], ["--timeout", "no time"]),
        (["run", "demo", "--timeout", "-1"], ["--timeout", "no time"]),
        (["run", "demo", "--timeout", "nan"], ["--timeout", "no time"]),
        (["run", "demo", "--timeout", "1e999"], ["--timeout", "no time"]),
        (["run", "demo", "--seed", "-1"], ["--seed"]),
        (["run", "demo", "--seed", str(1 << 64)], ["--seed"]),
        (["run", "demo", "--seed", "1", "--realtime"], ["--seed", "--realtime"]),
        (["run", "demo", "--tlb-flush-inhibit", "srcu"], ["--tlb-flush-inhibit", "'srcu' is not one of ours, posted"]),
        (["run", "demo", "--engine", "bochs"], ["--engine", "auto, unicorn, kvm"]),
        (["run", "demo", "--engine", "kvm", "--seed", "1"], ["--engine kvm", "leave out --seed"]),
        (["run", "demo", "--engine", "kvm", "--nested"], ["--nested", "--engine unicorn"]),
        (["run", "demo", "--trace", "out.json"], ["--trace", "no format has the suffix '.json'"]),
        (["run", "demo", "--append", "x" * 5000], ["command line"]),
        (["run", "demo", "--colour"], ["no such option: --colour", "vtlkit run --help"]),
        (["fly"], ["no such command 'fly'", "vtlkit --help"]),
        (["bench", "nothing"], ["no row nothing", "cpuid"]),
        (["bench", "--rounds", "0"], ["--rounds"]),
        (["info", "more"], ["more"]),
    ],
)
def test_words_that_are_refused(words: list[str], parts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    status = main(words)
    printed = capfd.readouterr()
    command = "vtlkit" if words[0] == "fly" else f"vtlkit {words[0]}"
    refused(cli_rig.Done(status, printed.out.encode(), printed.err), *parts, command=command)


def test_a_file_name_with_a_line_break_does_not_break_the_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.elf").write_bytes(b"nothing\x1b[2J")
    refused(cli_rig.run("a\nb.elf", cwd=tmp_path))


def test_no_words_at_all_show_the_help() -> None:
    done = cli_rig.vtlkit()
    assert done.status == 2
    assert done.errors.startswith("Usage: vtlkit")
