"""No hypercall or overlay lets a VTL read or write what a higher one has protected."""

from __future__ import annotations

import pytest

from tests.unit.vmm.vsm.deputy_rig import DeputyRig, Oracle, canary, pages_named


@pytest.mark.tlfs("protection.confused-deputy")
@pytest.mark.parametrize("seed", range(8))
def test_random_hypercalls_of_random_vtls(seed: int) -> None:
    rig = DeputyRig(seed)
    rig.run(1500)
    succeeded = {code for code, status in rig.answers if not status}
    assert len(succeeded) > 5


def test_the_oracle_sees_a_leak_and_a_forbidden_write() -> None:
    assert set(pages_named(b"xx" + canary(7)[3:40])) == {7}
    oracle = Oracle()
    oracle.protect(1, 0, 3, 1)
    assert oracle.allows(0, 3, 1)
    assert not oracle.allows(0, 3, 2)
    assert oracle.allows(1, 3, 2)
