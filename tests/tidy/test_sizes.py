"""No file or function above the limits is new or grows, and the ratchet that says so turns one way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tidy import ratchet

HOW = (
    "Split what grew, or record it deliberately: python -m tests.tidy.ratchet --update --grow\n"
    "(--update alone only takes over what shrank.)"
)


def test_nothing_outgrows_its_record() -> None:
    complaints = ratchet.compare(ratchet.load(), ratchet.measure(ratchet.ROOT))
    assert not complaints, "\n".join(["", *complaints, HOW])


def house(root: Path, lines: int, body: int) -> None:
    """A source tree of one file of `lines` lines, which holds one method of `body` lines."""
    text = ["class C:", "    def long(self):", *["        pass"] * (body - 1)]
    text += [""] * (lines - len(text) - 1) + ["X = 1"]
    (root / "src").mkdir(exist_ok=True)
    (root / "src" / "a.py").write_text("\n".join(text) + "\n")


def test_sizes_are_lines_of_files_and_of_qualified_functions(tmp_path: Path) -> None:
    house(tmp_path, 401, 61)
    assert ratchet.measure(tmp_path) == {"src/a.py": 401, "src/a.py::C.long": 61}
    house(tmp_path, 400, 60)
    assert ratchet.measure(tmp_path) == {}


def test_nested_and_async_functions_are_measured() -> None:
    text = "async def outer():\n    def inner():\n        pass\n    if 1:\n        def other(): pass\n"
    assert ratchet.functions(text) == {"outer": 5, "outer.inner": 2, "outer.other": 1}


def test_the_ratchet_turns_one_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "sizes.json"
    record.write_text("{}")

    def run(*words: str) -> tuple[int, str]:
        return ratchet.main(words, tmp_path, record), capsys.readouterr().out

    house(tmp_path, 450, 10)
    status, output = run()
    assert status == 1
    assert "src/a.py: 450 lines, above 400, and not recorded" in output
    assert run("--update")[0] == 1, "--update alone accepts nothing new"
    assert run("--update", "--grow") == (0, "")

    house(tmp_path, 460, 70)
    status, output = run("--update")
    assert status == 1
    assert "grew from 450 to 460" in output
    assert "C.long: 70 lines, above 60" in output

    house(tmp_path, 420, 10)
    assert run() == (0, "")
    assert json.loads(record.read_text()) == {"src/a.py": 450}
    assert run("--update") == (0, "")
    assert json.loads(record.read_text()) == {"src/a.py": 420}

    house(tmp_path, 10, 10)
    assert run("--update") == (0, "")
    assert json.loads(record.read_text()) == {}
