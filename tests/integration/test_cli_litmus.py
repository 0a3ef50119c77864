"""`vtlkit litmus` as a user has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration import cli_rig

SHAPES = Path(__file__).parents[1] / "checker" / "litmus" / "shapes"
SB = str(SHAPES / "SB.litmus")
MP = str(SHAPES / "MP+release+acquire.litmus")


def refused(done: cli_rig.Done, *parts: str) -> None:
    assert done.status == 2, done.errors
    assert done.console == b""
    (line,) = done.error_lines
    assert line.startswith("vtlkit litmus: ")
    for part in parts:
        assert part in line


def test_one_test() -> None:
    done = cli_rig.vtlkit("litmus", SB)
    assert (done.status, done.errors) == (0, "")
    assert done.console.decode() == "SB: Sometimes (1 of 4 executions) under lkmm; as recorded\n"


def test_several_tests_are_a_table() -> None:
    done = cli_rig.vtlkit("litmus", SB, MP)
    assert done.status == 0
    lines = done.console.decode().splitlines()
    assert any(line.split() == ["SB", "Sometimes", "Sometimes", "agrees", "1", "of", "4"] for line in lines)
    assert lines[-1] == "2 of 2 agree with their recorded result"


def test_a_folder_and_what_disagrees() -> None:
    done = cli_rig.vtlkit("litmus", "--model", "sc", str(SHAPES))
    assert done.status == 1
    rows = [line.split() for line in done.console.decode().splitlines()]
    assert ["SB", "Never", "Sometimes", "DISAGREES", "0", "of", "3"] in rows
    assert ["SB+mbs", "Never", "Never", "agrees", "0", "of", "3"] in rows


def test_final_states_and_a_witness() -> None:
    done = cli_rig.vtlkit("litmus", "--show", SB)
    text = done.console.decode()
    rows = [line.split() for line in text.splitlines()]
    assert ["0:r0", "1:r0", "executions"] in rows
    assert [row for row in rows if len(row) == 3 and set("".join(row)) <= set("01")] == [
        ["0", "0", "1"],
        ["0", "1", "1"],
        ["1", "0", "1"],
        ["1", "1", "1"],
    ]
    assert "The condition holds in this execution:" in text
    assert "read y = 0 (once), initial value" in text


def test_no_witness_where_the_condition_does_not_hold() -> None:
    assert "The condition holds" not in cli_rig.vtlkit("litmus", "--show", MP).console.decode()


def test_json() -> None:
    done = cli_rig.vtlkit("litmus", "--json", "--model", "tso", SB, str(SHAPES / "plain-MP.litmus"))
    assert done.status == 1
    data = json.loads(done.console)
    assert data["model"] == "tso"
    first, second = data["tests"]
    assert {key: first[key] for key in ("name", "result", "recorded", "agrees", "positive", "negative", "flags")} == {
        "name": "SB",
        "result": "Sometimes",
        "recorded": "Sometimes",
        "agrees": True,
        "positive": 1,
        "negative": 3,
        "flags": [],
    }
    assert {"state": {"0:r0": 0, "1:r0": 0}, "count": 1} in first["states"]
    assert len(first["witness"]) == 2
    assert (second["result"], second["agrees"], second["flags"]) == ("Never", False, ["data-race"])


def test_a_test_without_a_recorded_result(tmp_path: Path) -> None:
    path = tmp_path / "mine.litmus"
    path.write_text("C mine\n{}\nP0(int *x) { *x = 1; }\nP1(int *x) { WRITE_ONCE(*x, 2); }\nforall (x=2)\n")
    done = cli_rig.vtlkit("litmus", str(path))
    assert done.status == 0
    assert done.console.decode() == (
        "mine: Sometimes (1 of 2 executions) under lkmm; no recorded result; Flag data-race\n"
    )


def test_somebody_waits_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "stuck.litmus"
    path.write_text("C stuck\n{}\nP0(spinlock_t *l) { spin_lock(l); spin_lock(l); }\nexists (true)\n")
    assert "nothing can happen" in cli_rig.vtlkit("litmus", str(path)).console.decode()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("C bad\n{}\nP0(int *x)\n{\n\tfoo(x);\n}\nexists (x=1)\n", "bad.litmus:5: foo() is no primitive"),
        (
            "C bad\n{}\nP0(int *x) { int r0 = " + "(" * 5000,
            "bad.litmus: statements or expressions are nested too deeply",
        ),
        ("C bad\n{ x = " + "9" * 5000 + "; }\n", "bad.litmus:2: a number of more than 20 digits"),
        ("C bad\n{}\nP0(int *x) { }\nexists (0x0:r0=1)\n", "bad.litmus: 0:r0: P0 has no register r0"),
        ("X86 bad\n", "bad.litmus:1: no litmus test in C"),
        ("", "bad.litmus:1: the file is empty"),
        ("C bad\n{}\nP0(int *x) { }\nexists (y=1)\n", "bad.litmus: y: there is no shared variable y"),
        ("C bad\n{}\nP0(int *x)\n{\n\tint r0 = *x;\n\t*r0 = 1;\n}\nexists (x=1)\n", "bad.litmus:6: P0: 0 is used as a"),
    ],
)
def test_a_bad_test(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.litmus"
    path.write_text(text)
    refused(cli_rig.vtlkit("litmus", str(path)), complaint)


def test_a_bad_test_among_others(tmp_path: Path) -> None:
    (tmp_path / "bad.litmus").write_text("C bad\n{}\n")
    (tmp_path / "good.litmus").write_text(Path(SB).read_text())
    done = cli_rig.vtlkit("litmus", str(tmp_path))
    assert done.status == 2
    assert "SB: Sometimes" in done.console.decode()
    (line,) = done.error_lines
    assert "bad.litmus:3: thread P0 expected" in line


def test_files_that_are_no_tests(tmp_path: Path) -> None:
    refused(cli_rig.vtlkit("litmus", str(tmp_path / "nowhere")), "nowhere: No such file")
    refused(cli_rig.vtlkit("litmus", str(tmp_path)), "no .litmus file in this folder")
    (tmp_path / "binary").write_bytes(b"C name\n\xff\xfe")
    refused(cli_rig.vtlkit("litmus", str(tmp_path / "binary")), "not a text file")
    (tmp_path / "large").write_bytes(b"C name\n" + b" " * (1 << 20))
    refused(cli_rig.vtlkit("litmus", str(tmp_path / "large")), "larger than 1 MiB")


def test_what_a_model_cannot_judge() -> None:
    path = str(SHAPES / "RCU+MP.litmus")
    refused(cli_rig.vtlkit("litmus", "--model", "rc11", path), "RCU+MP.litmus:", "no grace periods: use lkmm or sc")
    refused(cli_rig.vtlkit("litmus", "--model", "arm", path), "'arm' is not one of lkmm, sc, tso, rc11")


def test_the_command_loads_no_engine() -> None:
    assert "litmus" in cli_rig.vtlkit("--help").console.decode()
    probe = "import sys; from vtlkit.cli.main import application; application(); print('vtlkit.checker' in sys.modules)"
    assert cli_rig.program(probe).console == b"False\n"
