"""Every engine of vtlkit against `vtlkit.testing.engine_conformance`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import devkvm_here
from vtlkit.engine.devkvm import DevKvmFactory
from vtlkit.engine.scripted import ScriptedFactory
from vtlkit.engine.unicorn import UnicornFactory
from vtlkit.testing import engine_conformance
from vtlkit.testing.engine_conformance import CASES, Case, EngineUnderTest, Need


def _start_thread(function: Callable[[], None]) -> Callable[[], None]:
    failures: list[BaseException] = []

    def body() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()

    def wait() -> None:
        thread.join()
        if failures:
            raise failures[0]

    return wait


ENGINES = [
    EngineUnderTest("unicorn", UnicornFactory, frozenset({Need.THREADS})),
    EngineUnderTest(
        "unicorn-threads",
        lambda: UnicornFactory(counting=False, threaded=True),
        frozenset({Need.COUNTS}),
        start_thread=_start_thread,
    ),
    EngineUnderTest(
        "kvm",
        DevKvmFactory,
        frozenset({Need.COUNTS, Need.CPUID, Need.INTERCEPTS, Need.USER_HYPERCALL}),
        start_thread=_start_thread,
    ),
    EngineUnderTest("scripted", lambda: ScriptedFactory({}), frozenset({Need.MACHINE_CODE, Need.THREADS})),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("under_test", ENGINES, ids=lambda under_test: under_test.name)
def test_conforms(under_test: EngineUnderTest, case: Case) -> None:
    reason = under_test.why_not(case)
    known = None
    if reason is None and under_test.name == "kvm":
        reason = devkvm_here.why_not()
        known = None if reason else devkvm_here.differences().get(case.name)
    if reason is not None:
        pytest.skip(reason)
    try:
        case.run(under_test)
    except AssertionError:
        if known is None:
            raise
        pytest.xfail(known)


def test_every_difference_is_a_case() -> None:
    names = {case.name for case in CASES}
    assert set(devkvm_here.EVERY_KVM | devkvm_here.SHADOW_PAGING | devkvm_here.EMULATED_KERNEL_MODE) <= names


def test_no_module_of_cases_is_forgotten() -> None:
    """A module registers its cases when it is imported: every one that has any must be."""
    package = Path(engine_conformance.__file__).parent
    having = {path.stem for path in package.glob("*.py") if "@case(" in path.read_text()}
    assert having == {module.__name__.rpartition(".")[2] for module in engine_conformance.CASE_MODULES}
