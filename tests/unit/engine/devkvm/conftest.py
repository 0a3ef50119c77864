"""The /dev/kvm engines of these tests; without one they are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import devkvm_here
from vtlkit.engine.devkvm import DevKvmFactory


@pytest.fixture
def factory() -> Iterator[DevKvmFactory]:
    if (reason := devkvm_here.why_not()) is not None:
        pytest.skip(reason)
    made = DevKvmFactory()
    yield made
    made.close()
