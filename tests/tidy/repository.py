"""Rules of the repository that a program can check, as functions from text to complaints."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

PRUNED = {
    ".git",
    ".venv",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
    "conformance-out",
}
PRUNED |= {"dist", "build", "node_modules"}

MAX_BYTES = 200 * 1024
LARGE_FILES: Mapping[str, int] = {}
"""Path -> size in bytes that it may have, where more than MAX_BYTES is justified."""

_MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|tmp|farm|root|home/\w+)/")
# PCI's own name for its configuration mechanism has a number behind a hash, too.
_TRACKER = re.compile(r"(?<![\w&:%#])(?<!mechanism )#\d{1,5}\b|\bissues?\s+#?\d+\b", re.IGNORECASE)
_UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
_COMMAND = re.compile(r"\bmake(?: +-\S+)* +([a-z][\w-]*)")


def files(root: Path) -> Iterator[Path]:
    """Every file of the working tree that belongs to the project, nested caches and environments left out."""
    for directory, names, found in os.walk(root):
        names[:] = sorted(name for name in names if name not in PRUNED and not name.endswith(".egg-info"))
        # In a linked worktree .git is a file.
        yield from (Path(directory) / name for name in sorted(found) if name not in PRUNED)


def text_of(path: Path) -> str | None:
    """The file's text, or None where it is binary."""
    data = path.read_bytes()
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _matches(pattern: re.Pattern[str], text: str, what: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if found := pattern.search(line):
            yield f"line {number}: {what}: {found[0].strip()}"


def machine_paths(text: str) -> Iterator[str]:
    """Absolute paths that exist on one machine only."""
    yield from _matches(_MACHINE_PATH, text, "path of one machine")


def tracker_numbers(text: str) -> Iterator[str]:
    """Numbers of a tracker that a reader of the repository does not have."""
    yield from _matches(_TRACKER, text, "number of a tracker")


def unfinished_marks(text: str) -> Iterator[str]:
    """Notes that something is not done: docs/LIMITS.md is the place to say so."""
    yield from _matches(_UNFINISHED, text, "unfinished")


def missing_newline(text: str) -> Iterator[str]:
    """A text file ends with exactly one newline."""
    if text and not text.endswith("\n"):
        yield "does not end with a newline"
    elif text.endswith("\n\n"):
        yield "ends with an empty line"


def too_large(name: str, size: int) -> Iterator[str]:
    """A file of the repository has at most MAX_BYTES, or a justified limit of its own."""
    limit = LARGE_FILES.get(name, MAX_BYTES)
    if size > limit:
        yield f"{size} bytes, above {limit}"


def module_rules(text: str, may_print: bool) -> Iterator[str]:
    """A module has a docstring, prints only where it is the command line, and swallows no error."""
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        yield "line 1: no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not may_print:
            yield f"line {node.lineno}: print() outside the command line"
        elif isinstance(node, ast.ExceptHandler):
            yield from _handler_rules(node)


def _handler_rules(node: ast.ExceptHandler) -> Iterator[str]:
    if node.type is None:
        yield f"line {node.lineno}: bare except"
    elif _catches_everything(node.type) and all(_does_nothing(statement) for statement in node.body):
        yield f"line {node.lineno}: {ast.unparse(node.type)} is swallowed"


def _catches_everything(kind: ast.expr) -> bool:
    kinds = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(item, ast.Name) and item.id in ("Exception", "BaseException") for item in kinds)


def _does_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass | ast.Continue)


def make_commands(markdown: str) -> set[str]:
    """Targets of `make` that a page tells its reader to use: in code blocks and in code spans."""
    code = re.findall(r"^```.*?^```", markdown, re.MULTILINE | re.DOTALL)
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL))
    return {target for part in code for target in _COMMAND.findall(part)}


def make_targets(makefile: str) -> set[str]:
    """Targets that a Makefile declares as phony."""
    return {name for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for name in line.split()}


def local_links(markdown: str) -> list[str]:
    """Targets of Markdown links that lead to a file of the repository, without their anchors."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown, flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose)]
    return [link for link in links if link and "://" not in link]


def tests_named(markdown: str) -> list[tuple[str, str]]:
    """(file, test) for each `tests/x.py` or `tests/x.py::test_y` of a page; no test where a file alone is named."""
    return [(path, test) for path, test in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", markdown)]


def missing_tests(markdown: str, root: Path) -> Iterator[str]:
    """Tests that a page names and that are not there."""
    for path, test in tests_named(markdown):
        file = root / path
        if not file.exists():
            yield f"names {path}, which is not there"
        elif test and not re.search(rf"^ *def {test}\(", file.read_text(), re.MULTILINE):
            yield f"names {path}::{test}, which is not there"
