"""The items of checklist.toml, and the tests that carry their marker."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1]
DOCUMENT: Final = TESTS.parent / "docs" / "TLFS.md"
MARKER: Final = "tlfs"


@dataclass(frozen=True, slots=True)
class Item:
    """One behaviour. `limit`: what docs/LIMITS.md calls the reason why it may be missing; empty: it may not."""

    id: str
    section: str
    text: str
    limit: str = ""


def items() -> list[Item]:
    """Every item, in order."""
    document = tomllib.loads((TESTS / "tlfs" / "checklist.toml").read_text(encoding="utf-8"))
    found = []
    for key, section in document.items():
        title = section.pop("title")
        for name, value in section.items():
            text, limit = (value, "") if isinstance(value, str) else (value["text"], value["limit"])
            found.append(Item(f"{key}.{name}", title, text, limit))
    return found


def markers(source: str) -> Iterator[tuple[str, int]]:
    """(item, line) of every `pytest.mark.tlfs(...)` in a test file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == MARKER:
            for argument in node.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                    raise ValueError(f"line {node.lineno}: items are named by string literals")
                yield argument.value, node.lineno


def marked() -> Iterator[tuple[Path, str, int]]:
    """(file, item, line) of every marker in the tests."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for item, line in markers(path.read_text(encoding="utf-8")):
            yield path, item, line
