"""The house's layers hold, and the checker that says so finds each kind of forbidden edge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tidy.layers import LAYERS, check_module, check_tree

SOURCE = Path(__file__).parents[2] / "src"
MODULES = ["vtlkit", *(f"vtlkit.{name}" for name in LAYERS)]
MODULES += ["vtlkit.host.api", "vtlkit.host.threads", "vtlkit.engine.api", "vtlkit.engine.unicorn", "vtlkit.kvm.uapi"]
MODULES += ["vtlkit.kvm.lapic", "vtlkit.x86.paging"]


def complaints(module: str, text: str, is_package: bool = False) -> list[str]:
    return [violation.text for violation in check_module(module, text, MODULES, is_package=is_package)]


def test_the_house_keeps_its_layers() -> None:
    violations = check_tree(SOURCE)
    assert not violations, "\n" + "\n".join(map(str, violations))


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("vtlkit.x86.paging", "import vtlkit.kvm.lapic", "upward"),
        ("vtlkit.x86.paging", "from vtlkit.hvdef import x", "sideways"),
        ("vtlkit.x86.paging", "def f():\n    from vtlkit.engine.api import Exit", "upward"),
        ("vtlkit.x86.paging", "if TYPE_CHECKING:\n    from vtlkit.kvm import lapic", "upward"),
        ("vtlkit.x86.paging", "from ..kvm import lapic", "upward"),
        ("vtlkit.x86", "from .. import kvm", "upward"),
        ("vtlkit.x86.paging", "import_module('vtlkit.kvm.lapic')", "upward"),
        ("vtlkit.host.api", "import importlib\nimportlib.import_module('vtlkit.cli')", "upward"),
        ("vtlkit.layout", "import vtlkit.trace", "sideways"),
        ("vtlkit.host.threads", "from vtlkit.engine.api import Exit", "sideways"),
        ("vtlkit.checker.engines", "from vtlkit.vmm import machine", "sideways"),
        ("vtlkit.kvm.run", "from vtlkit.host import threads", "only way in"),
        ("vtlkit.kvm.run", "from vtlkit.host import Host", "only way in"),
        ("vtlkit.kvm.run", "import vtlkit.engine.unicorn", "only way in"),
        ("vtlkit.vmm.machine", "from vtlkit.kvm.lapic import Lapic", "only way in"),
        ("vtlkit.vmm.machine", "from vtlkit.kvm import lapic", "only way in"),
        ("vtlkit.vmm.machine", "from vtlkit.engine.unicorn import engine", "only way in"),
        ("vtlkit", "from vtlkit.cli import main", "root package"),
        ("vtlkit.novel.thing", "import vtlkit.layout", "no layer"),
        ("vtlkit.kvm.run", "import vtlkit.novel", "no layer"),
        ("vtlkit.kvm.lapic", "import unicorn", "outside its adapter"),
        ("vtlkit.vmm.vsm.decode", "from iced_x86 import Decoder", "outside its adapter"),
        ("vtlkit.host.threads", "import greenlet", "outside its adapter"),
        ("vtlkit.engine.scripted", "import greenlet", "outside its adapter"),
        ("vtlkit.vmm.machine", "import rich.console", "outside its adapter"),
        ("vtlkit.cli.run", "import scipy", "neither in the standard library"),
        ("vtlkit.checker.program", "import numpy", "outside its adapter"),
        ("vtlkit.kvm.lapic", "import time", "reserved to host"),
        ("vtlkit.kvm.lapic", "from time import monotonic_ns", "reserved to host"),
        ("vtlkit.cli.run", "import random", "reserved to host"),
        ("vtlkit.engine.scripted", "import threading", "reserved to host"),
        ("vtlkit.kvm.lapic", "import os\nos.urandom(4)", "reserved to host"),
        ("vtlkit.kvm.lapic", "from os import urandom", "reserved to host"),
        ("vtlkit.kvm.lapic", "import os as o\no.urandom(4)", "reserved to host"),
        ("vtlkit.vmm.rtc", "from datetime import datetime\ndatetime.now()", "reserved to host"),
        ("vtlkit.vmm.rtc", "import datetime\ndatetime.datetime.now()", "reserved to host"),
    ],
)
def test_a_forbidden_edge_is_found(module: str, text: str, expected: str) -> None:
    found = complaints(module, text, is_package=module in ("vtlkit", "vtlkit.x86"))
    assert len(found) >= 1
    assert all(expected in complaint for complaint in found)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("vtlkit.kvm.run", "from vtlkit.host.api import Host\nfrom vtlkit.engine import api\nimport vtlkit.x86.paging"),
        ("vtlkit.kvm.run", "from . import lapic\nfrom .lapic import Lapic\nfrom vtlkit.kvm import lapic as again"),
        (
            "vtlkit.vmm.machine",
            "from vtlkit.kvm import uapi\nfrom vtlkit.kvm.uapi import Vm\nfrom vtlkit.host import api",
        ),
        ("vtlkit.checker.engines", "from vtlkit.engine.unicorn import engine\nfrom vtlkit.host import threads"),
        (
            "vtlkit.cli.run",
            "import time\nimport typer\nfrom vtlkit import __version__\nfrom vtlkit.engine import unicorn",
        ),
        ("vtlkit.engine.unicorn.cpu", "import threading\nimport greenlet\nimport unicorn\nimport iced_x86"),
        ("vtlkit.host.sim.run", "import greenlet\nimport random\nimport os\nos.urandom(4)"),
        ("vtlkit.vmm.rtc", "import datetime\ndatetime.datetime(2000, 1, 1)"),
    ],
)
def test_a_permitted_edge_is_not_reported(module: str, text: str) -> None:
    assert complaints(module, text) == []


def test_the_tree_is_read_from_disk(tmp_path: Path) -> None:
    package = tmp_path / "vtlkit" / "x86"
    package.mkdir(parents=True)
    (tmp_path / "vtlkit" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("def lazy():\n    import vtlkit.cli\n")
    assert [(v.path, v.line) for v in check_tree(tmp_path)] == [("vtlkit/x86/__init__.py", 2)]
