"""The tests of the run loop's own behaviour run once for each vendor: what they say holds on both."""

from __future__ import annotations

import pytest

from vtlkit.kvm import uapi, vm
from vtlkit.kvm.vendor import DEFAULT_VENDOR, VENDORS

BOTH_VENDORS = {
    "test_debug_exceptions",
    "test_events",
    "test_exits",
    "test_immediate_exit",
    "test_inactive",
    "test_nmi",
    "test_pause",
    "test_run",
    "test_run_string_io",
    "test_tsc",
    "test_user_intercepts",
    "test_vm",
    "test_wait",
    "test_windows",
}
"""Modules by name."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_VENDORS:
        metafunc.parametrize("vendor", list(VENDORS), indirect=True)


@pytest.fixture(autouse=True)
def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The vendor of every virtual machine that does not name its own."""
    name: str = getattr(request, "param", DEFAULT_VENDOR)
    for function in (vm.Vm.__init__, uapi.Kvm.__init__):
        monkeypatch.setitem(function.__kwdefaults__, "vendor", name)  # type: ignore[arg-type]
    return name
