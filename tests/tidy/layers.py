"""Which package of vtlkit may import what, as data, and the checker that reads every import with `ast`.

The promise: an edge that the house forbids is found wherever it stands: at module level, inside a function, under
TYPE_CHECKING, or in a call of `import_module` with a literal name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "vtlkit"

LAYERS = {
    "layout": 0,
    "trace": 0,
    "guests": 0,
    "hvdef": 1,
    "x86": 1,
    "host": 2,
    "engine": 2,
    "kvm": 3,
    "vmm": 4,
    "checker": 4,
    "testing": 5,
    "cli": 6,
    "__main__": 7,
}
"""Imports go to a lower number only; packages of one number are strangers to each other."""

DOORS = {
    "kvm": {"host": ("host.api",), "engine": ("engine.api",)},
    "vmm": {"kvm": ("kvm.uapi",), "host": ("host.api",), "engine": ("engine.api",)},
}
"""Importer -> imported package -> the only modules of it that the importer may see."""

THIRD_PARTY = {
    "unicorn": ("engine",),
    "iced_x86": ("engine", "testing"),
    "greenlet": ("engine.unicorn", "host.sim", "checker.hosted"),
    "typer": ("cli",),
    "rich": ("cli",),
    "perfetto": ("trace.perfetto_sink", "trace.perfetto_reader"),
    "google": ("trace.perfetto_reader",),
    "numpy": ("checker.states",),
}
"""Distribution module -> its adapters. A module that is neither here nor in the standard library is an error."""

NONDETERMINISM = {
    "time": ("host", "cli"),
    "random": ("host",),
    "secrets": ("host",),
    "threading": ("host", "engine.unicorn", "engine.devkvm"),
    "_thread": ("host", "engine.unicorn"),
    "os.urandom": ("host",),
    "os.getrandom": ("host",),
    "datetime.datetime.now": ("host",),
    "datetime.datetime.utcnow": ("host",),
    "datetime.datetime.today": ("host",),
    "datetime.date.today": ("host",),
}
"""Sources of time, chance and concurrency -> who may touch them: everyone else gets them from the host."""


@dataclass(frozen=True, slots=True)
class Import:
    """One dotted name that a module refers to, and the line."""

    name: str
    line: int


@dataclass(frozen=True, slots=True)
class Violation:
    """An edge that the house forbids."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def check_tree(source: Path) -> list[Violation]:
    """Check every module below `source` (the directory that holds the `vtlkit` package)."""
    files = sorted((source / PACKAGE).rglob("*.py"))
    modules = {module_name(path.relative_to(source)) for path in files}
    found: list[Violation] = []
    for path in files:
        relative = path.relative_to(source)
        found += check_module(
            module_name(relative), path.read_text(), modules, str(relative), path.name == "__init__.py"
        )
    return found


def module_name(relative: Path) -> str:
    """`vtlkit/x86/paging.py` -> `vtlkit.x86.paging`; a package is named without `__init__`."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def check_module(
    module: str, text: str, modules: Iterable[str], path: str = "<text>", is_package: bool = False
) -> list[Violation]:
    """Check one module's source. `modules` are the names of all modules of the house."""
    known = set(modules)
    tree = ast.parse(text, path)
    own = module.removeprefix(PACKAGE).lstrip(".")
    found: list[Violation] = []
    for item in _imports(tree, module, known, is_package):
        if item.name == PACKAGE or item.name.startswith(PACKAGE + "."):
            complaint = _inside(own, item.name.removeprefix(PACKAGE).lstrip("."))
        else:
            complaint = _outside(own, item.name)
        if complaint:
            found.append(Violation(path, item.line, complaint))
    for item in _attribute_uses(tree):
        if item.name in NONDETERMINISM and not _is_within(own, NONDETERMINISM[item.name]):
            found.append(Violation(path, item.line, _reserved(item.name)))
    return found


def _inside(own: str, target: str) -> str | None:
    """Why module `own` may not import module `target` (both without the `vtlkit.` prefix), or None."""
    source, destination = own.partition(".")[0], target.partition(".")[0]
    if not destination or source == destination:
        return None
    if not source:
        return f"the root package imports {PACKAGE}.{target}: it must import nothing of the house"
    for name in (source, destination):
        if name not in LAYERS and name not in ("__main__",):
            return f"package {name} has no layer: add it to LAYERS"
    if source == "__main__":
        return None if destination == "cli" else f"__main__ imports {PACKAGE}.{target}: only cli"
    if LAYERS[destination] > LAYERS[source]:
        return (
            f"upward import: {source} (layer {LAYERS[source]}) imports {PACKAGE}.{target} (layer {LAYERS[destination]})"
        )
    if LAYERS[destination] == LAYERS[source]:
        return f"sideways import: {source} and {destination} are both of layer {LAYERS[source]} ({PACKAGE}.{target})"
    doors = DOORS.get(source, {}).get(destination)
    if doors is not None and not _is_within(target, doors):
        return f"{source} imports {PACKAGE}.{target}: its only way in is {', '.join(f'{PACKAGE}.{d}' for d in doors)}"
    return None


def _outside(own: str, name: str) -> str | None:
    """Why module `own` may not import `name`, which is not of the house, or None."""
    top = name.partition(".")[0]
    for reserved in (name, top):
        if reserved in NONDETERMINISM:
            return None if _is_within(own, NONDETERMINISM[reserved]) else _reserved(reserved)
    if top in sys.stdlib_module_names:
        return None
    if top not in THIRD_PARTY:
        return f"{top} is neither in the standard library nor a dependency with an adapter"
    if not _is_within(own, THIRD_PARTY[top]):
        return f"{top} is imported outside its adapter ({', '.join(THIRD_PARTY[top])})"
    return None


def _reserved(name: str) -> str:
    return f"{name} is reserved to {', '.join(NONDETERMINISM[name])}: take it from the host"


def _is_within(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _imports(tree: ast.Module, module: str, known: set[str], is_package: bool) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield from (Import(_target(base, alias.name, known), node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and (literal := _dynamic(node)) is not None:
            yield Import(literal, node.lineno)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The absolute name behind `from ...`, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, node.module] if node.module else kept)


def _target(base: str, name: str, known: set[str]) -> str:
    """`from base import name` means the module `base.name` where there is one, or something dangerous of that name."""
    dotted = f"{base}.{name}"
    return dotted if dotted in known or dotted in NONDETERMINISM else base


def _dynamic(node: ast.Call) -> str | None:
    """The literal name that `import_module(...)` or `__import__(...)` is called with."""
    function = node.func
    name = (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )
    if name not in ("import_module", "__import__") or not node.args:
        return None
    argument = node.args[0]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def _attribute_uses(tree: ast.Module) -> Iterator[Import]:
    """Dotted uses such as `os.urandom` or `datetime.now`, with names imported by `from` spelled out."""
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            origin.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            head, _, rest = name.partition(".")
            yield Import(f"{origin.get(head, head)}.{rest}", node.lineno)
